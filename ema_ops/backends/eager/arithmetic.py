"""The arithmetic of the loop on [G, N, C]: every head of every image is one of G = B * H images.

What has a row per position, [G, N, K], lies in memory as the features do, which makes the products of a contiguous
image faster on a CPU.
"""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from ...layout import empty_like_order
from ...problem import Problem


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
