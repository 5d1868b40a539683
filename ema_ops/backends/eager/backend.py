"""The loop, its two halves, and their gradients."""

from __future__ import annotations

import torch

from ...problem import Problem
from ..base import Backend
from . import folded
from .arithmetic import (
    as_images,
    cat,
    empty_per_position,
    flat,
    normalize,
    normalize_backward,
    product,
    product_backward,
    rebuilt,
    responsibilities,
    softmax,
    tempered,
    unflat,
    weighted,
)


class EagerBackend(Backend):
    """See `Backend` for the shapes. Inside, every head of every image is one of G = B * H images: [G, N, C]."""

    name = "torch"

    def unavailable(self) -> None:
        return None

    def refuses(self, problem: Problem) -> None:
        return None

    def em_forward(self, problem, x, bases, weight):
        features, weight = as_images(problem, x), flat(weight)
        steps = (problem.num_iters, problem.batch, problem.heads)
        path = features.new_empty(*steps, problem.channels, problem.num_bases)
        masses, lengths = (features.new_empty(*steps, problem.num_bases) for _ in range(2))
        last = torch.empty_like(path[0])
        path[0].copy_(bases)
        z = empty_per_position(problem, features)
        # fresh memory costs as much as the arithmetic that fills it; the softmax of the CPU works in place
        logits = z if z.is_cpu else empty_per_position(problem, features)
        m, *following = (*path.flatten(1, 2).unbind(), flat(last))
        for mass, length, next_m in zip(masses.flatten(1, 2), lengths.flatten(1, 2), following, strict=True):
            softmax(problem, product(problem, features, tempered(problem, m), out=logits), out=z)
            zw = weighted(z, weight)
            torch.sum(zw, 1, out=mass)
            normalize(problem, torch.bmm(features.mT, zw), mass, length, next_m)
            m = next_m
        return rebuilt(problem, x, z, m), last, path, masses, lengths

    def em_backward(self, problem, grad_y, grad_bases, x, weight, bases, path, mass, length, need_bases):
        steps, stop = problem.num_iters, problem.num_iters - problem.grad_iters
        features, grad_out, weight = as_images(problem, x), as_images(problem, grad_y), flat(weight)
        bases, path, mass, length = flat(bases), path.flatten(1, 2), mass.flatten(1, 2), length.flatten(1, 2)
        left, right = [], []
        for t in range(steps, stop, -1):
            z = responsibilities(problem, features, path[t - 1], None)
            if t == steps:
                m, grad_m = bases, torch.bmm(grad_out.mT, z)
                if grad_bases is not None:
                    grad_m += flat(grad_bases)
            else:
                m = path[t]
            grad_sums, grad_mass = normalize_backward(problem, grad_m, m, mass[t - 1], length[t - 1])
            grad_z = weighted(product(problem, features, grad_sums).add_(grad_mass.unsqueeze(1)), weight)
            if t == steps:
                grad_z += product(problem, grad_out, bases)
            grad_product, _ = product_backward(problem, z, grad_z)
            left += [weighted(z, weight), grad_product]
            right += [grad_sums, path[t - 1]]
            if t > stop + 1 or need_bases:
                grad_m = torch.bmm(features.mT, grad_product)
        # one product of rank 2 * grad_iters * K writes grad_x once
        grad_x = rebuilt(problem, x, cat(problem, left), torch.cat(right, -1), is_gradient=True)
        return grad_x, unflat(problem, grad_m) if need_bases else None

    def em_step(self, problem, x, bases, weight, logit_bias):
        features = as_images(problem, x)
        zw = weighted(responsibilities(problem, features, flat(bases), flat(logit_bias)), flat(weight))
        return unflat(problem, torch.bmm(features.mT, zw)), unflat(problem, zw.sum(1))

    def em_step_backward(self, problem, grad_sums, grad_mass, x, bases, weight, logit_bias):
        features, weight = as_images(problem, x), flat(weight)
        bases, grad_sums = flat(bases).to(features.dtype), flat(grad_sums).to(features.dtype)
        z = responsibilities(problem, features, bases, flat(logit_bias))
        grad_z = weighted(product(problem, features, grad_sums).add_(flat(grad_mass).unsqueeze(1)), weight)
        grad_product, grad_bias = product_backward(problem, z, grad_z)
        left, right = cat(problem, [weighted(z, weight), grad_product]), torch.cat([grad_sums, bases], -1)
        grad_x = rebuilt(problem, x, left, right, is_gradient=True)
        return grad_x, unflat(problem, torch.bmm(features.mT, grad_product)), unflat(problem, grad_bias)

    def em_reconstruct(self, problem, x, logit_bases, value_bases, logit_bias):
        z = responsibilities(problem, as_images(problem, x), flat(logit_bases), flat(logit_bias))
        return rebuilt(problem, x, z, flat(value_bases).to(z.dtype))

    def em_reconstruct_backward(self, problem, grad_y, x, logit_bases, value_bases, logit_bias):
        features, grad_out = as_images(problem, x), as_images(problem, grad_y)
        logit_bases, value_bases = flat(logit_bases).to(features.dtype), flat(value_bases).to(features.dtype)
        z = responsibilities(problem, features, logit_bases, flat(logit_bias))
        grad_product, grad_bias = product_backward(problem, z, product(problem, grad_out, value_bases))
        grad_x = rebuilt(problem, x, grad_product, logit_bases, is_gradient=True)
        grad_logit_bases, grad_value_bases = torch.bmm(features.mT, grad_product), torch.bmm(grad_out.mT, z)
        return grad_x, *(unflat(problem, grad) for grad in (grad_logit_bases, grad_value_bases, grad_bias))

    em_folded_forward = staticmethod(folded.forward)
    em_folded_backward = staticmethod(folded.backward)
    em_unit = staticmethod(folded.unit)


BACKEND = EagerBackend()
