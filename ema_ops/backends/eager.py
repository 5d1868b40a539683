"""The "torch" backend: the loop and its gradient in plain PyTorch, on any device and dtype.

No graph is recorded inside an operator, so the gradient is written out (docs/mathematics.md). 16-bit features are
computed in float32. What has a row per position, [G, N, K], lies in memory as the features do, which makes the
products of a contiguous image faster on a CPU.
"""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from ..layout import empty_like_order
from ..problem import Problem
from .base import Backend

TILE = 2**17  # numbers in a tile of positions, which the cache of a processor holds


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

    def em_unit(self, problem, x, bases, weight, weight1, bias1, weight2, bias2):
        features, weight, m = as_images(problem, x), flat(weight), flat(bases).to(problem.accumulate_dtype)
        weight1, weight2 = weight1.to(features.dtype), weight2.to(features.dtype)
        mass = features.new_empty(len(features), problem.num_bases)
        length, last = torch.empty_like(mass), features.new_empty(m.shape)
        for _ in range(problem.num_iters):
            # f M = x (weight1^T M) + bias1 M, and f^T z = weight1 (x^T z) + bias1 times the mass
            z = responsibilities(problem, features, weight1.mT @ m, problem.scale * (bias1 @ m))
            zw = weighted(z, weight)
            torch.sum(zw, 1, out=mass)
            sums = weight1 @ torch.bmm(features.mT, zw) + bias1.unsqueeze(-1) * mass.unsqueeze(1)
            normalize(problem, sums, mass, length, last)
            m = last
        return epilogue(problem, x, features, z, last, weight2, bias2), unflat(problem, last)


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


def positions_are_fastest(problem: Problem) -> bool:
    """Whether [G, N, K] lies in memory as [G, K, N]; the softmax of such memory gets slow for many bases."""
    return problem.order == "BHCN" and problem.num_bases <= 64


def empty_per_position(problem: Problem, features: Tensor) -> Tensor:
    """An uninitialised [G, N, K]."""
    images, positions, num_bases = *features.shape[:2], problem.num_bases
    if positions_are_fastest(problem):
        return features.new_empty(images, num_bases, positions).mT
    return features.new_empty(images, positions, num_bases)


def product(problem: Problem, left: Tensor, right: Tensor, *, out: Tensor | None = None) -> Tensor:
    """left [G, N, P] times right [G, P, R]."""
    if positions_are_fastest(problem):
        return torch.bmm(right.mT, left.mT, out=None if out is None else out.mT).mT
    return torch.bmm(left, right, out=out)


def softmax(problem: Problem, logits: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Over K of [G, N, K]."""
    if positions_are_fastest(problem):
        return torch.softmax(logits.mT, 1, out=None if out is None else out.mT).mT
    return torch.softmax(logits, 2, out=out)


def cat(problem: Problem, tensors: list[Tensor]) -> Tensor:
    """Tensors [G, N, K] side by side."""
    if positions_are_fastest(problem):
        return torch.cat([tensor.mT for tensor in tensors], 1).mT
    return torch.cat(tensors, 2)


def responsibilities(problem: Problem, features: Tensor, bases: Tensor, logit_bias: Tensor | None) -> Tensor:
    """E-step [G, N, K]."""
    logits = product(problem, features, tempered(problem, bases.to(features.dtype)))
    if logit_bias is not None:
        logits += logit_bias.unsqueeze(1)
    return softmax(problem, logits)


def tempered(problem: Problem, bases: Tensor) -> Tensor:
    """The temperature goes into the small bases instead of the logits."""
    return bases if problem.scale == 1 else problem.scale * bases


def weighted(z: Tensor, weight: Tensor | None) -> Tensor:
    """Responsibilities [G, N, K] times the weight [G, N] of their position."""
    return z if weight is None else z * weight.unsqueeze(-1)


def divisor(problem: Problem, value: Tensor) -> Tensor:
    """eps + value or max(eps, value); 1 where that is 0, which takes eps = 0: there 0 is divided."""
    shifted = value + problem.eps if problem.eps_mode == "add" else value.clamp_min(problem.eps)
    return shifted if problem.eps > 0 else shifted.masked_fill_(shifted == 0, 1)


def normalize(problem: Problem, sums: Tensor, mass: Tensor, length: Tensor, m: Tensor) -> None:
    """The end of the M-step: fills the length [G, K] of the means and the bases `m` [G, C, K]."""
    total = divisor(problem, mass)
    # torch.linalg.vector_norm over a strided dimension is several times slower
    torch.div(sums.square().sum(1).sqrt_(), total, out=length)
    torch.div(sums, total.mul_(divisor(problem, length)).unsqueeze(1), out=m)


def normalize_backward(
    problem: Problem, grad_m: Tensor, m: Tensor, mass: Tensor, length: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the undivided sums [G, C, K] and of the mass [G, K] from that of the bases."""
    along = (m * grad_m).sum(1)
    add = problem.eps_mode == "add"
    total, unit = divisor(problem, mass), divisor(problem, length)
    # a dead base (length 0) has no direction to lose
    radial = torch.where(length > (0 if add else problem.eps), along / length, 0)
    grad_sums = (grad_m / unit.unsqueeze(1) - m * radial.unsqueeze(1)) / total.unsqueeze(1)
    # after the L2 norm the mass matters only through eps: written so that nothing cancels
    if add:
        return grad_sums, -along * problem.eps / unit / total
    only_mass_moves = (length <= problem.eps) & (mass > problem.eps)
    return grad_sums, torch.where(only_mass_moves, -along / total, 0)


def product_backward(problem: Problem, z: Tensor, grad_z: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax backward: gradient of the product x bases [G, N, K] and of the logit bias [G, K]."""
    if positions_are_fastest(problem):
        grad_logits = torch.ops.aten._softmax_backward_data(grad_z.mT, z.mT, 1, z.dtype).mT
    else:
        grad_logits = torch.ops.aten._softmax_backward_data(grad_z, z, 2, z.dtype)
    grad_bias = grad_logits.sum(1)
    return (grad_logits if problem.scale == 1 else grad_logits.mul_(problem.scale)), grad_bias


def rebuilt(problem: Problem, x: Tensor, left: Tensor, right: Tensor, *, is_gradient: bool = False) -> Tensor:
    """left [G, N, R] times right [G, C, R] transposed, as [B, H, N, C] in the memory order and dtype of `x`."""
    columns = problem.order == "BHCN"
    product = unflat(problem, torch.bmm(right, left.mT) if columns else torch.bmm(left, right.mT))
    if is_gradient and x.dtype == torch.float16:
        # where all features are 0 the gradient is of size 1 / eps, more than float16 holds
        product.clamp_(-torch.finfo(x.dtype).max, torch.finfo(x.dtype).max)
    if columns:
        return product.to(x.dtype).mT
    return product.to(x.dtype) if problem.order == "BHNC" else empty_like_order(x, right.shape[1]).copy_(product)


def epilogue(
    problem: Problem, x: Tensor, features: Tensor, z: Tensor, bases: Tensor, weight2: Tensor, bias2: Tensor
) -> Tensor:
    """relu(features + relu(z bases^T) weight2^T + bias2) [B, 1, N, C] in the memory order and dtype of `x`."""
    columns = problem.order == "BHCN"
    y = empty_like_order(x).flatten(0, 1)
    tile = max(64, TILE // (problem.channels * max(1, problem.batch)))
    for start in range(0, problem.positions, tile):
        part = slice(start, start + tile)
        residual, z_part, y_part = features[:, part], z[:, part], y[:, part]
        if columns:
            rebuilt = torch.bmm(bases, z_part.mT).relu_()
            total = torch.baddbmm(residual.mT, weight2.expand(len(z), -1, -1), rebuilt).add_(bias2.unsqueeze(-1)).mT
        else:
            rebuilt = torch.bmm(z_part, bases.mT).relu_()
            total = torch.baddbmm(residual, rebuilt, weight2.mT.expand(len(z), -1, -1)).add_(bias2)
        y_part.copy_(total.relu_())
    return unflat(problem, y)
