"""The "torch" backend: the loop and its gradient in plain PyTorch, on any device and dtype.

No graph is recorded inside an operator, so the gradient is written out (docs/mathematics.md). 16-bit features are
computed in float32.
"""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from ..layout import empty_like_order
from ..problem import Problem
from .base import Backend


class EagerBackend(Backend):
    """See `Backend` for the shapes. Inside, every head of every image is one of G = B * H images: [G, N, C]."""

    name = "torch"

    def unavailable(self) -> None:
        return None

    def refuses(self, problem: Problem) -> None:
        return None

    def em_forward(self, problem, x, bases, weight):
        outer, steps = (problem.batch, problem.heads), problem.num_iters
        features, weight = as_images(problem, x), flat(weight)
        path = features.new_empty(steps, features.shape[0], problem.channels, problem.num_bases)
        masses = features.new_empty(steps, features.shape[0], problem.num_bases)
        lengths, last = torch.empty_like(masses), torch.empty_like(path[0])
        path[0].view(*outer, *path.shape[2:]).copy_(bases)
        for t in range(steps):
            z = responsibilities(problem, features, path[t], None)
            zw = weighted(z, weight)
            mass = torch.sum(zw, 1, out=masses[t])
            sums = torch.bmm(features.mT, zw)
            inverse_mass = inverse(problem, mass)
            # torch.linalg.vector_norm over a strided dimension is several times slower
            length = torch.mul(sums.square().sum(1).sqrt_(), inverse_mass, out=lengths[t])
            factor = inverse_mass.mul_(inverse(problem, length)).unsqueeze(1)
            m = torch.mul(sums, factor, out=path[t + 1] if t + 1 < steps else last)
        y = product_in_order(problem, x, z, m)
        return y, unflat(problem, last), *(t.unflatten(1, outer) for t in (path, masses, lengths))

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
            grad_z = torch.baddbmm(grad_mass.unsqueeze(1), features, grad_sums)
            grad_z = grad_z if weight is None else grad_z.mul_(weight.unsqueeze(-1))
            if t == steps:
                grad_z.baddbmm_(grad_out, bases)
            grad_product, _ = product_backward(problem, z, grad_z)
            left += [weighted(z, weight), grad_product]
            right += [grad_sums, path[t - 1]]
            if t > stop + 1 or need_bases:
                grad_m = torch.bmm(features.mT, grad_product)
        # one product of rank 2 * grad_iters * K writes grad_x once
        grad_x = product_in_order(problem, x, torch.cat(left, -1), torch.cat(right, -1), is_gradient=True)
        return grad_x, unflat(problem, grad_m) if need_bases else None

    def em_step(self, problem, x, bases, weight, logit_bias):
        features = as_images(problem, x)
        zw = weighted(responsibilities(problem, features, flat(bases), flat(logit_bias)), flat(weight))
        return unflat(problem, torch.bmm(features.mT, zw)), unflat(problem, zw.sum(1))

    def em_step_backward(self, problem, grad_sums, grad_mass, x, bases, weight, logit_bias):
        features, weight = as_images(problem, x), flat(weight)
        bases, grad_sums = flat(bases).to(features.dtype), flat(grad_sums).to(features.dtype)
        z = responsibilities(problem, features, bases, flat(logit_bias))
        grad_z = weighted(torch.baddbmm(flat(grad_mass).unsqueeze(1), features, grad_sums), weight)
        grad_product, grad_bias = product_backward(problem, z, grad_z)
        left, right = torch.cat([weighted(z, weight), grad_product], -1), torch.cat([grad_sums, bases], -1)
        grad_x = product_in_order(problem, x, left, right, is_gradient=True)
        return grad_x, unflat(problem, torch.bmm(features.mT, grad_product)), unflat(problem, grad_bias)

    def em_reconstruct(self, problem, x, logit_bases, value_bases, logit_bias):
        z = responsibilities(problem, as_images(problem, x), flat(logit_bases), flat(logit_bias))
        return product_in_order(problem, x, z, flat(value_bases).to(z.dtype))

    def em_reconstruct_backward(self, problem, grad_y, x, logit_bases, value_bases, logit_bias):
        features, grad_out = as_images(problem, x), as_images(problem, grad_y)
        logit_bases, value_bases = flat(logit_bases).to(features.dtype), flat(value_bases).to(features.dtype)
        z = responsibilities(problem, features, logit_bases, flat(logit_bias))
        grad_product, grad_bias = product_backward(problem, z, torch.bmm(grad_out, value_bases))
        grad_x = product_in_order(problem, x, grad_product, logit_bases, is_gradient=True)
        grad_logit_bases, grad_value_bases = torch.bmm(features.mT, grad_product), torch.bmm(grad_out.mT, z)
        return grad_x, *(unflat(problem, grad) for grad in (grad_logit_bases, grad_value_bases, grad_bias))


BACKEND = EagerBackend()


def as_images(problem: Problem, x: Tensor) -> Tensor:
    """Features [B, H, N, C] as [G, N, C] in the accumulate dtype; a view where batch and heads merge."""
    return x.to(problem.accumulate_dtype).flatten(0, 1)


@overload
def flat(tensor: Tensor) -> Tensor: ...
@overload
def flat(tensor: None) -> None: ...
def flat(tensor):
    """[B, H, ..] as [G, ..]; None stays None."""
    return None if tensor is None else tensor.flatten(0, 1)


def unflat(problem: Problem, tensor: Tensor) -> Tensor:
    """[G, ..] as [B, H, ..]."""
    return tensor.unflatten(0, (problem.batch, problem.heads))


def responsibilities(problem: Problem, features: Tensor, bases: Tensor, logit_bias: Tensor | None) -> Tensor:
    """E-step [G, N, K]; the temperature goes into the small bases."""
    bases = bases.to(features.dtype)
    logits = torch.bmm(features, bases if problem.scale == 1 else problem.scale * bases)
    if logit_bias is not None:
        logits += logit_bias.unsqueeze(1)
    return torch.softmax(logits, dim=-1)


def weighted(z: Tensor, weight: Tensor | None) -> Tensor:
    """Responsibilities [G, N, K] times the weight [G, N] of their position."""
    return z if weight is None else z * weight.unsqueeze(-1)


def inverse(problem: Problem, value: Tensor) -> Tensor:
    """1 / (eps + value) or 1 / max(eps, value); 0 where that would divide by 0, which takes eps = 0."""
    denominator = value + problem.eps if problem.eps_mode == "add" else value.clamp_min(problem.eps)
    quotient = denominator.reciprocal()
    return quotient if problem.eps > 0 else quotient.masked_fill_(denominator == 0, 0)


def normalize_backward(
    problem: Problem, grad_m: Tensor, m: Tensor, mass: Tensor, length: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the undivided sums [G, C, K] and of the mass [G, K] from that of the bases."""
    along = (m * grad_m).sum(1)
    add = problem.eps_mode == "add"
    inverse_mass, inverse_length = inverse(problem, mass), inverse(problem, length)
    # a dead base (length 0) has no direction to lose
    radial = torch.where(length > (0 if add else problem.eps), along / length, 0)
    grad_sums = (grad_m * inverse_length.unsqueeze(1) - m * radial.unsqueeze(1)) * inverse_mass.unsqueeze(1)
    # after the L2 norm the mass matters only through eps: written so that nothing cancels
    if add:
        return grad_sums, -along * problem.eps * inverse_length * inverse_mass
    only_mass_moves = (length <= problem.eps) & (mass > problem.eps)
    return grad_sums, torch.where(only_mass_moves, -along * inverse_mass, 0)


def product_backward(problem: Problem, z: Tensor, grad_z: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax backward: gradient of the product x bases [G, N, K] and of the logit bias [G, K]."""
    grad_logits = torch.ops.aten._softmax_backward_data(grad_z, z, -1, z.dtype)
    grad_bias = grad_logits.sum(1)
    return (grad_logits if problem.scale == 1 else grad_logits.mul_(problem.scale)), grad_bias


def product_in_order(problem: Problem, x: Tensor, left: Tensor, right: Tensor, *, is_gradient: bool = False) -> Tensor:
    """left [G, N, R] times right [G, C, R] transposed, as [B, H, N, C] in the memory order and dtype of `x`."""
    columns = problem.order == "BHCN"
    product = unflat(problem, torch.bmm(right, left.mT) if columns else torch.bmm(left, right.mT))
    if is_gradient and x.dtype == torch.float16:
        # where all features are 0 the gradient is of size 1 / eps, more than float16 holds
        product.clamp_(-torch.finfo(x.dtype).max, torch.finfo(x.dtype).max)
    if columns:
        return product.to(x.dtype).mT
    return product.to(x.dtype) if problem.order == "BHNC" else empty_like_order(x, right.shape[1]).copy_(product)
