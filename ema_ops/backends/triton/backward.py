"""The gradient: which kernels run in which order, and the memory between them.

Responsibilities are computed again from the bases of every iteration. For each, one kernel gives the gradient of the
logits, one the partial sums of the gradient of the bases before, and one adds those; a last product writes grad_x once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...layout import empty_like_order
from ...problem import Problem
from . import backward_kernels as kernels
from . import settings
from .forward import Features, dense_bias, e_step, images, m_step, weight_arguments
from .plan import block, ceil_div, layout_of
from .reduction import SLOTS_AT_ONCE, Partials


def em_backward(
    problem: Problem,
    grad_y: Tensor,
    grad_bases: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    bases: Tensor,
    path: Tensor,
    mass: Tensor,
    length: Tensor,
    need_bases: bool,
) -> tuple[Tensor, Tensor | None]:
    """See `Backend.em_backward`."""
    stop = problem.num_iters - problem.grad_iters
    features, grads = Features.of(problem, x), Features.of(problem, grad_y)
    products, sums = Products.empty(problem, 2 * problem.grad_iters), SumsGradient.empty(problem)
    rows_of(problem, path[stop:], problem.scale, out=products.right[1::2])
    e_step(problem, features, path[-1], None, products.left[-2])
    partials, factor = m_step(problem, grads, products.left[-2]), 1.0
    m = bases
    values: tuple[Features, Tensor] | None = (grads, rows_of(problem, bases))
    for t in range(problem.num_iters - 1, stop - 1, -1):
        pair = slice(2 * (t - stop), 2 * (t - stop) + 2)
        (z, grad_logits), (sums_rows, logit_rows) = products.left[pair], products.right[pair]
        normalize_backward(problem, partials.sums, factor, grad_bases, (m, mass[t], length[t]), sums_rows, sums)
        e_step_backward(problem, features, logit_rows, None, (sums_rows, sums), weight, values, z, grad_logits)
        if t > stop or need_bases:
            partials = m_step(problem, features, grad_logits)
        m, values, factor, grad_bases = path[t], None, problem.scale, None
    grad_initial = total(problem, partials, problem.scale)[0] if need_bases else None
    return products.add(problem, x), grad_initial


def em_step_backward(
    problem: Problem,
    grad_sums: Tensor,
    grad_mass: Tensor,
    x: Tensor,
    bases: Tensor,
    weight: Tensor | None,
    logit_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `Backend.em_step_backward`."""
    features, products, sums = Features.of(problem, x), Products.empty(problem, 2), SumsGradient.empty(problem)
    (z, grad_logits), (sums_rows, logit_rows) = products.left, products.right
    rows_of(problem, bases, problem.scale, out=logit_rows)
    sums.mass.copy_(grad_mass)
    slot = grad_sums.float().transpose(-1, -2).contiguous().view(-1, 1, problem.num_bases, problem.channels)
    normalize_backward(problem, slot, 1.0, None, None, sums_rows, sums)
    bias = dense_bias(logit_bias)
    e_step_backward(problem, features, logit_rows, bias, (sums_rows, sums), weight, None, z, grad_logits)
    grad_bases, grad_bias = total(problem, m_step(problem, features, grad_logits), problem.scale)
    return products.add(problem, x), grad_bases, grad_bias


def em_reconstruct_backward(
    problem: Problem,
    grad_y: Tensor,
    x: Tensor,
    logit_bases: Tensor,
    value_bases: Tensor,
    logit_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `Backend.em_reconstruct_backward`."""
    features, grads = Features.of(problem, x), Features.of(problem, grad_y)
    products = Products.empty(problem, 1)
    (grad_logits,), (logit_rows,) = products.left, products.right
    rows_of(problem, logit_bases, problem.scale, out=logit_rows)
    z, bias, values = torch.empty_like(grad_logits), dense_bias(logit_bias), (grads, rows_of(problem, value_bases))
    e_step_backward(problem, features, logit_rows, bias, None, None, values, z, grad_logits)
    grad_logit_bases, grad_bias = total(problem, m_step(problem, features, grad_logits), problem.scale)
    grad_value_bases, _ = total(problem, m_step(problem, grads, z), 1.0)
    return products.add(problem, x), grad_logit_bases, grad_value_bases, grad_bias


class Products(NamedTuple):
    """The products whose sum is grad_x, in the dtype of x: left [S, B * H, N, K] and right [S, B * H, K, C]."""

    left: Tensor
    right: Tensor

    @classmethod
    def empty(cls, problem: Problem, count: int) -> Products:
        """Workspace for `count` products."""
        sizes = (count, images(problem), problem.positions, problem.num_bases)
        left = torch.empty(sizes, dtype=problem.dtype, device=problem.device)
        return cls(left, left.new_empty(*sizes[:2], problem.num_bases, problem.channels))

    def add(self, problem: Problem, x: Tensor) -> Tensor:
        """grad_x in the memory order of `x`."""
        grad_x = empty_like_order(x)
        layout, launch = layout_of(grad_x), settings.launch_of("grad_features", problem)
        tiles = ceil_div(problem.positions, launch.positions) * ceil_div(problem.channels, launch.channels)
        kernels.grad_features[(images(problem) * tiles,)](
            self.left,
            self.right,
            grad_x,
            *layout.strides,
            layout.positions,
            images(problem),
            problem.heads,
            len(self.left),
            C=problem.channels,
            K=problem.num_bases,
            Y_UNIT=layout.unit,
            Y_CHANNELS_FIRST=layout.channels_first,
            BLOCK_N=launch.positions,
            BLOCK_C=launch.channels,
            BLOCK_K=min(block(problem.num_bases), 128 // self.left.element_size()),
            PRECISION=settings.precision(problem),
            **launch.options,
        )
        return grad_x


class SumsGradient(NamedTuple):
    """What belongs to the rows of a gradient of sums: their powers of two and the gradient of the mass, [B, H, K]."""

    powers: Tensor
    mass: Tensor

    @classmethod
    def empty(cls, problem: Problem) -> SumsGradient:
        """Uninitialised, in float32."""
        sizes = (2, problem.batch, problem.heads, problem.num_bases)
        return cls(*torch.empty(sizes, dtype=torch.float32, device=problem.device))


def rows_of(problem: Problem, bases: Tensor, factor: float = 1.0, out: Tensor | None = None) -> Tensor:
    """factor * bases [.., B, H, C, K] as rows [.., B * H, K, C] in the dtype of x, written to `out` if given."""
    if out is None:
        out = torch.empty(
            images(problem), problem.num_bases, bases.shape[-2], dtype=problem.dtype, device=problem.device
        )
    torch.mul(bases.transpose(-1, -2), factor, out=out.unflatten(-3, (problem.batch, problem.heads)))
    return out


def normalize_backward(
    problem: Problem,
    grads: Tensor,
    factor: float,
    extra: Tensor | None,
    normalized: tuple[Tensor, Tensor, Tensor] | None,
    sums_rows: Tensor,
    sums: SumsGradient,
) -> None:
    """Fill `sums_rows` [B * H, K, C] and `sums` with the gradient of the sums that became the bases `normalized`.

    The gradient of those bases is factor * the sum of `grads` [B * H, splits, K, C], plus `extra` [B, H, C, K].
    `normalized` is bases, mass and length; None says that the gradient is that of the sums already.
    """
    splits, num_bases, channels = grads.shape[1:]
    kernels.normalize_backward[(images(problem) * num_bases,)](
        grads,
        extra,
        *((0, 0, 0, 0) if extra is None else extra.stride()),
        *((None, None, None) if normalized is None else (tensor.contiguous() for tensor in normalized)),
        sums_rows,
        *sums,
        problem.heads,
        splits,
        factor,
        problem.eps,
        C=channels,
        K=num_bases,
        BLOCK_C=block(channels),
        BLOCK_S=SLOTS_AT_ONCE,
        EPS_ADD=problem.eps_mode == "add",
        num_warps=8 if channels > 512 else 4,
    )


def e_step_backward(
    problem: Problem,
    features: Features,
    logit_rows: Tensor,
    logit_bias: Tensor | None,
    sums: tuple[Tensor, SumsGradient] | None,
    weight: Tensor | None,
    values: tuple[Features, Tensor] | None,
    z: Tensor,
    grad_logits: Tensor,
) -> None:
    """Fill `z` and `grad_logits` [B * H, N, K]; see the kernel of the same name."""
    launch = settings.launch_of("e_step_backward", problem)
    sums_rows, (powers, grad_mass) = (None, (None, None)) if sums is None else sums
    grads, value_rows = (None, None) if values is None else values
    kernels.e_step_backward[(images(problem) * ceil_div(problem.positions, launch.positions),)](
        *features.arguments,
        logit_rows,
        logit_bias,
        sums_rows,
        powers,
        grad_mass,
        *weight_arguments(weight),
        *((None, 0, 0, 0, 0) if grads is None else (grads.tensor, *grads.layout.strides)),
        value_rows,
        z,
        grad_logits,
        problem.heads,
        CV=problem.value_channels,
        Y_UNIT=1 if grads is None else grads.layout.unit,
        Y_CHANNELS_FIRST=grads is not None and grads.layout.channels_first,
        **features.constants(problem, launch),
    )


def total(problem: Problem, partials: Partials, factor: float) -> tuple[Tensor, Tensor]:
    """factor * the sums as [B, H, C, K], and the masses as [B, H, K]."""
    sizes = (problem.batch, problem.heads, partials.sums.shape[-1], problem.num_bases)
    sums = torch.empty(sizes, dtype=torch.float32, device=problem.device)
    mass = torch.empty_like(sums[:, :, 0])
    partials.add(sums, mass, factor)
    return sums, mass
