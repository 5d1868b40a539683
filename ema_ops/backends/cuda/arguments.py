"""Tensors as the compiled core takes them: addresses and strides."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...problem import Problem


def in_order(problem: Problem, rows: Tensor) -> Tensor:
    """`rows` [B, H, N, C] with the innermost dimension of the problem's memory order dense: itself or a copy."""
    inner = 2 if problem.order == "BHCN" else 3
    if rows.stride(inner) == 1 or rows.shape[inner] == 1:
        return rows
    batch, heads, positions, channels = rows.shape
    shape = (batch, heads, channels, positions) if inner == 2 else (batch, heads, positions, channels)
    copy = torch.empty(shape, dtype=rows.dtype, device=rows.device)
    return (copy.transpose(2, 3) if inner == 2 else copy).copy_(rows)


def as_features(problem: Problem, rows: Tensor) -> tuple[int, ...]:
    """`rows` [B, H, N, C] as the core takes them, with the innermost dimension of the problem's memory order dense."""
    batch, head, position, channel = rows.stride()
    if problem.order == "BHCN":
        position = 1  # it may be anything where its size is 1
    else:
        channel = 1
    return rows.data_ptr(), batch, head, position, channel, rows.shape[3]


def aligned(tensor: Tensor) -> Tensor:
    """`tensor` from a multiple of 16 bytes on: itself or a copy."""
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def can_be_boxed(argument: Any) -> bool:
    """Whether features of 16-bit numbers start and step at multiples of 16 bytes; True for what are no features."""
    if not isinstance(argument, tuple) or len(argument) != 6:
        return True
    data, batch, head, position, channel, _ = argument
    step = position if channel == 1 else channel
    # what is expanded has a stride of 0, of which the copy engine's documentation says nothing
    return 0 not in (batch, head, step) and (data | 2 * (batch | head | step)) % 16 == 0


def as_weight(weight: Tensor | None) -> tuple[int, ...]:
    """`weight` [B, H, N] as the core takes it."""
    return (0, 0, 0, 0) if weight is None else (weight.data_ptr(), *weight.stride())


def as_bases(bases: Tensor) -> tuple[int, ...]:
    """Bases [B, H, C, K] in float32, or [H, C, K] for all images, as the core takes them."""
    return (bases.data_ptr(), *bases.stride()) if bases.dim() == 4 else (bases.data_ptr(), 0, *bases.stride())


def in_float32(tensor: Tensor) -> Tensor:
    """`tensor` itself or a copy."""
    # a call that changes nothing costs a microsecond
    return tensor if tensor.dtype is torch.float32 else tensor.to(torch.float32)


def dense(tensor: Tensor | None) -> Tensor | None:
    """In float32 and contiguous; None stays None."""
    return None if tensor is None else in_float32(tensor).contiguous()


def empty(problem: Problem, *sizes: int) -> Tensor:
    """Uninitialised float32."""
    return torch.empty(sizes, dtype=torch.float32, device=problem.device)


def address(tensor: Tensor | None) -> int:
    """0 for None."""
    return 0 if tensor is None else tensor.data_ptr()
