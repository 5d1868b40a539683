"""The gradients of the loop and of its two parts: what is launched, in which order, into which workspace.

Responsibilities are computed again from the bases of every iteration. An iteration costs two or three launches, and one
product at the end writes grad_x once (see `backward_kernels`). Nothing is added by atomics.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ...problem import Problem, empty_like_order
from .backward_kernels import finish_kernel, grad_features_kernel, moment_kernel, rows_kernel


def em_backward(
    problem: Problem,
    grad_y: Tensor,
    grad_bases: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    bases: Tensor,
    path: Tensor,
    masses: Tensor,
    lengths: Tensor,
    need_bases: bool,
) -> tuple[Tensor, Tensor | None]:
    """See `Backend.em_backward`."""
    batch, heads, num_bases = problem.batch, problem.heads, problem.num_bases
    turns, stop = problem.grad_iters, problem.num_iters - problem.grad_iters
    features, grad_out = x, grad_y
    left = x.new_empty(batch * heads, problem.positions, turns, 2, num_bases)
    right = x.new_empty(batch * heads, turns, 2, num_bases, problem.channels)
    right.view(batch, heads, *right.shape[1:])[:, :, :, 1].copy_(path[stop:].permute(1, 2, 0, 4, 3))
    last_bases = _as_rows(x, bases)
    power, grad_mass = _per_base(problem, x), _per_base(problem, x)

    _rows(problem, features, right[:, -1, 1], left_z=left[:, :, -1, 0])
    moment = _moment(problem, left[:, :, -1, 0], grad_out)
    for turn in range(turns - 1, -1, -1):
        t, at_end = stop + turn, turn == turns - 1
        _finish(
            problem,
            moment,
            extra=grad_bases if at_end else None,
            normalized=(bases if at_end else path[t + 1], masses[t], lengths[t], grad_mass),
            right=(right[:, turn, 0], power),
        )
        _rows(
            problem,
            features,
            right[:, turn, 1],
            grad_sums=(right[:, turn, 0], power, grad_mass),
            values=(grad_out, last_bases) if at_end else None,
            weight=weight,
            left_z=left[:, :, turn, 0],
            left_product=left[:, :, turn, 1],
        )
        if turn > 0 or need_bases:
            moment = _moment(problem, left[:, :, turn, 1], features)
    grad_initial = _finish(problem, moment) if need_bases else None
    return _grad_features(problem, x, left.flatten(2), right.flatten(1, 3)), grad_initial


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
    images, num_bases = problem.batch * problem.heads, problem.num_bases
    left = x.new_empty(images, problem.positions, 2, num_bases)
    right = x.new_empty(images, 2, num_bases, problem.channels)
    right[:, 1] = _as_rows(x, bases)
    power = _per_base(problem, x)
    slots = grad_sums.float().reshape(images, 1, problem.channels, num_bases).transpose(-1, -2)
    _finish(problem, slots, right=(right[:, 0], power))
    grad_bias = _rows(
        problem,
        x,
        right[:, 1],
        grad_sums=(right[:, 0], power, grad_mass.float().contiguous()),
        weight=weight,
        logit_bias=_bias(problem, x, logit_bias),
        left_z=left[:, :, 0],
        left_product=left[:, :, 1],
    )
    grad_bases = _finish(problem, _moment(problem, left[:, :, 1], x))
    return _grad_features(problem, x, left.flatten(2), right.flatten(1, 2)), grad_bases, grad_bias


def em_reconstruct_backward(
    problem: Problem,
    grad_y: Tensor,
    x: Tensor,
    logit_bases: Tensor,
    value_bases: Tensor,
    logit_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `Backend.em_reconstruct_backward`."""
    z, product = x.new_empty(2, problem.batch * problem.heads, problem.positions, problem.num_bases)
    right = _as_rows(x, logit_bases)
    grad_bias = _rows(
        problem,
        x,
        right,
        values=(grad_y, _as_rows(x, value_bases)),
        logit_bias=_bias(problem, x, logit_bias),
        left_z=z,
        left_product=product,
    )
    grad_logit_bases = _finish(problem, _moment(problem, product, x))
    grad_value_bases = _finish(problem, _moment(problem, z, grad_y))
    return _grad_features(problem, x, product, right), grad_logit_bases, grad_value_bases, grad_bias


def _as_rows(x: Tensor, bases: Tensor) -> Tensor:
    """Bases [B, H, C, K] as dense rows [B * H, K, C] in the dtype of x."""
    batch, heads, channels, num_bases = bases.shape
    return x.new_empty(batch, heads, num_bases, channels).copy_(bases.transpose(-1, -2)).flatten(0, 1)


def _per_base(problem: Problem, x: Tensor) -> Tensor:
    return x.new_empty(problem.batch, problem.heads, problem.num_bases, dtype=problem.accumulate_dtype)


def _bias(problem: Problem, x: Tensor, logit_bias: Tensor | None) -> Tensor:
    return x.new_zeros(()).expand(problem.batch, problem.heads, problem.num_bases) if logit_bias is None else logit_bias


def _precision(x: Tensor) -> str:
    return "tf32" if x.is_cuda and torch.backends.cuda.matmul.allow_tf32 else "ieee"


def _rows(
    problem: Problem,
    x: Tensor,
    logit_bases: Tensor,
    *,
    grad_sums: tuple[Tensor, Tensor, Tensor] | None = None,
    values: tuple[Tensor, Tensor] | None = None,
    weight: Tensor | None = None,
    logit_bias: Tensor | None = None,
    left_z: Tensor,
    left_product: Tensor | None = None,
) -> Tensor | None:
    block_n, block_c, warps, stages = 32, 32, 4, 2
    programs = problem.batch * problem.heads * triton.cdiv(problem.positions, block_n)
    grad_y, value_bases = values if values is not None else (x, logit_bases)
    sums, power, grad_mass = grad_sums if grad_sums is not None else (logit_bases, logit_bases, logit_bases)
    bias = x if logit_bias is None else logit_bias
    left_product = left_z if left_product is None else left_product
    grad_bias = None
    if logit_bias is not None:
        grad_bias = x.new_empty(programs, problem.num_bases, dtype=problem.accumulate_dtype)
    rows_kernel[(programs,)](
        x,
        *x.stride(),
        grad_y,
        *grad_y.stride(),
        logit_bases,
        logit_bases.stride(0),
        sums,
        sums.stride(0),
        power,
        grad_mass,
        value_bases,
        value_bases.stride(0),
        x if weight is None else weight,
        *((0, 0, 0) if weight is None else weight.stride()),
        bias,
        *((0, 0, 0) if logit_bias is None else logit_bias.stride()),
        left_z,
        left_product,
        left_z.stride(0),
        left_z.stride(1),
        left_z if grad_bias is None else grad_bias,
        problem.positions,
        problem.heads,
        problem.scale,
        C=problem.channels,
        CV=problem.value_channels,
        K=problem.num_bases,
        BLOCK_N=block_n,
        BLOCK_C=block_c,
        BLOCK_K=max(16, triton.next_power_of_2(problem.num_bases)),
        HAS_SUMS=grad_sums is not None,
        HAS_VALUES=values is not None,
        WEIGHTED=weight is not None,
        BIASED=logit_bias is not None,
        STORE_Z=True,
        PRECISION=_precision(x),
        num_warps=warps,
        num_stages=stages,
    )
    if grad_bias is None:
        return None
    return grad_bias.view(problem.batch, problem.heads, -1, problem.num_bases).sum(2)


def _moment(problem: Problem, left: Tensor, x: Tensor) -> Tensor:
    block_n, block_c, warps, stages = 32, 32, 4, 2
    images, channels = problem.batch * problem.heads, x.shape[-1]
    tiles = triton.cdiv(problem.positions, block_n)
    per_split = triton.cdiv(tiles, 4)
    splits = triton.cdiv(tiles, per_split)
    partial = x.new_empty(images, splits, problem.num_bases, channels, dtype=problem.accumulate_dtype)
    moment_kernel[(images * splits * triton.cdiv(channels, block_c),)](
        left,
        left.stride(0),
        left.stride(1),
        x,
        *x.stride(),
        partial,
        problem.positions,
        problem.heads,
        per_split,
        splits,
        C=channels,
        K=problem.num_bases,
        BLOCK_N=block_n,
        BLOCK_C=block_c,
        BLOCK_K=max(16, triton.next_power_of_2(problem.num_bases)),
        PRECISION=_precision(x),
        num_warps=warps,
        num_stages=stages,
    )
    return partial


def _finish(
    problem: Problem,
    partial: Tensor,
    *,
    extra: Tensor | None = None,
    normalized: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
    right: tuple[Tensor, Tensor] | None = None,
) -> Tensor | None:
    images, slots, num_bases, channels = partial.shape
    total = None
    if right is None:
        total = partial.new_empty(problem.batch, problem.heads, channels, num_bases)
    bases, mass, length, grad_mass = normalized if normalized is not None else (partial,) * 4
    row, power = right if right is not None else (partial, partial)
    finish_kernel[(images * num_bases,)](
        partial,
        *partial.stride(),
        partial if extra is None else extra,
        *((0, 0, 0, 0) if extra is None else extra.stride()),
        bases,
        mass,
        length,
        grad_mass,
        partial if total is None else total,
        row,
        row.stride(0),
        power,
        problem.heads,
        slots,
        problem.eps,
        C=channels,
        K=num_bases,
        BLOCK_SLOTS=16 if slots > 1 else 1,
        BLOCK_CHANNELS=triton.next_power_of_2(channels),
        EPS_ADD=problem.eps_mode == "add",
        HAS_EXTRA=extra is not None,
        NORMALIZE=normalized is not None,
        TO_RIGHT=right is not None,
        num_warps=4,
    )
    return total


def _grad_features(problem: Problem, x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    block_n, block_c, block_r, warps, stages = 32, 32, 32, 4, 2
    grad_x = empty_like_order(x)
    images, positions, rank = left.shape
    programs = images * triton.cdiv(positions, block_n) * triton.cdiv(problem.channels, block_c)
    grad_features_kernel[(programs,)](
        left,
        right,
        grad_x,
        *grad_x.stride(),
        positions,
        problem.heads,
        rank,
        C=problem.channels,
        BLOCK_N=block_n,
        BLOCK_C=block_c,
        BLOCK_R=block_r,
        EVEN_R=rank % block_r == 0,
        PRECISION=_precision(x),
        num_warps=warps,
        num_stages=stages,
    )
    return grad_x
