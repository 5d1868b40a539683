"""The loop on f = x W^T + b, with W and b applied to bases and sums: f is never made (docs/mathematics.md).

W is `conv_weight` [C, C] (out, in), b `conv_bias` [C]. Both ways go the same: bases M of f are W^T M and b M for x,
and x^T Z with the mass of Z becomes f^T Z = W (x^T Z) + b mass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...layout import empty_like_order
from ...problem import Problem
from ..convolution import convolution_gradient, convolved_sums
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
    unflat,
    weighted,
)

TILE = 2**17  # numbers in a tile of positions, which the cache of a processor holds


def forward(
    problem: Problem, x: Tensor, bases: Tensor, weight: Tensor | None, conv_weight: Tensor, conv_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `Backend.em_folded_forward`."""
    conv_weight = conv_weight.to(problem.accumulate_dtype)
    z, last, path, sums, mass, length = _run_loop(problem, x, bases, weight, conv_weight, conv_bias)
    return rebuilt(problem, x, z, flat(last)), last, path, sums, mass, length


def backward(
    problem: Problem,
    grad_y: Tensor,
    grad_bases: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor,
    bases: Tensor,
    path: Tensor,
    sums: Tensor,
    mass: Tensor,
    length: Tensor,
    need_bases: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """See `Backend.em_folded_backward`."""
    steps, stop = problem.num_iters, problem.num_iters - problem.grad_iters
    features, grad_out, weight = as_images(problem, x), as_images(problem, grad_y), flat(weight)
    conv_weight, bases = conv_weight.to(features.dtype), flat(bases)
    path, sums, mass, length = (tensor.flatten(1, 2) for tensor in (path, sums, mass, length))
    # grad_x is the sum of left right^T, the gradient of the convolution that of outer inner^T
    left, right, outer, inner, inner_mass = [], [], [], [], []
    for t in range(steps, stop, -1):
        logit_bases = conv_weight.mT @ path[t - 1]
        z = responsibilities(problem, features, logit_bases, problem.scale * (conv_bias @ path[t - 1]))
        if t == steps:
            m, grad_m = bases, torch.bmm(grad_out.mT, z)
            if grad_bases is not None:
                grad_m += flat(grad_bases)
        else:
            m = path[t]
        grad_sums, grad_mass = normalize_backward(problem, grad_m, m, mass[t - 1], length[t - 1])
        grad_inner = conv_weight.mT @ grad_sums
        grad_mass = grad_mass + conv_bias @ grad_sums
        grad_z = weighted(product(problem, features, grad_inner).add_(grad_mass.unsqueeze(1)), weight)
        if t == steps:
            grad_z += product(problem, grad_out, bases)
        grad_product, grad_bias = product_backward(problem, z, grad_z)
        grad_logit_bases, grad_bias = torch.bmm(features.mT, grad_product), problem.scale * grad_bias
        left += [weighted(z, weight), grad_product]
        right += [grad_inner, logit_bases]
        outer += [grad_sums, path[t - 1]]
        inner += [sums[t - 1], grad_logit_bases]
        inner_mass += [mass[t - 1], grad_bias]
        if t > stop + 1 or need_bases:
            grad_m = convolved_sums(conv_weight, conv_bias, grad_logit_bases, grad_bias)
    # one product of rank 2 * grad_iters * K writes grad_x once
    grad_x = rebuilt(problem, x, cat(problem, left), torch.cat(right, -1), is_gradient=True)
    gradients = convolution_gradient(problem, outer, inner, inner_mass, rounded=False)
    return grad_x, *gradients, unflat(problem, grad_m) if need_bases else None


def unit(
    problem: Problem,
    x: Tensor,
    bases: Tensor,
    weight: Tensor | None,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
) -> tuple[Tensor, Tensor]:
    """See `Backend.em_unit`."""
    dtype = problem.accumulate_dtype
    z, last, *_ = _run_loop(problem, x, bases, weight, weight1.to(dtype), bias1)
    return _epilogue(problem, x, as_images(problem, x), z, flat(last), weight2.to(dtype), bias2), last


def _run_loop(
    problem: Problem, x: Tensor, bases: Tensor, weight: Tensor | None, conv_weight: Tensor, conv_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The last responsibilities [G, N, K], and all results of `Backend.em_folded_forward` but y."""
    features, weight = as_images(problem, x), flat(weight)
    steps = (problem.num_iters, problem.batch, problem.heads)
    path, sums = (features.new_empty(*steps, problem.channels, problem.num_bases) for _ in range(2))
    masses, lengths = (features.new_empty(*steps, problem.num_bases) for _ in range(2))
    last = torch.empty_like(path[0])
    path[0].copy_(bases)
    z = empty_per_position(problem, features)
    # fresh memory costs as much as the arithmetic that fills it; the softmax of the CPU works in place
    logits = z if z.is_cpu else empty_per_position(problem, features)
    m, *following = (*path.flatten(1, 2).unbind(), flat(last))
    saved = (sums.flatten(1, 2), masses.flatten(1, 2), lengths.flatten(1, 2))
    for inner, mass, length, next_m in zip(*saved, following, strict=True):
        product(problem, features, problem.scale * (conv_weight.mT @ m), out=logits)
        logits += (problem.scale * (conv_bias @ m)).unsqueeze(1)
        softmax(problem, logits, out=z)
        zw = weighted(z, weight)
        torch.sum(zw, 1, out=mass)
        torch.bmm(features.mT, zw, out=inner)
        normalize(problem, convolved_sums(conv_weight, conv_bias, inner, mass), mass, length, next_m)
        m = next_m
    return z, last, path, sums, masses, lengths


def _epilogue(
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
