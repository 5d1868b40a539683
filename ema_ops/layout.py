"""The shapes in which features come, and their common view as rows with heads [B, H, N, C].

A layout names the dimensions of the features: "BNC" is [B, *spatial, C] (tokens), "BCN" is [B, C, *spatial] (images)
and "BHNC" is [B, H, N, C]. In the first two the channels are split over the heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

# the dimensions of rows [B, H, N, C] by `memory_order`
FROM_FASTEST = {"BHNC": (3, 2, 1, 0), "BNHC": (3, 1, 2, 0), "BHCN": (2, 3, 1, 0)}


def channels_are_fastest(strides: Sequence[int], layout: str) -> bool:
    """Whether neighbouring channels lie closer together in memory than neighbouring positions."""
    channel, position = (1, -1) if layout == "BCN" else (-1, -2)
    return strides[channel] <= strides[position]


def as_rows(x: Tensor, layout: str, heads: int) -> Tensor:
    """`x` as rows [B, H, N, C / H]; a view unless the strides of its spatial dimensions do not merge."""
    if layout == "BHNC":
        return x
    # flatten copies where it must: in the order that the memory of x has, so that the copy keeps it
    if channels_are_fastest(x.stride(), layout):
        rows = (x.movedim(1, -1) if layout == "BCN" else x).flatten(1, -2)
    else:
        rows = (x if layout == "BCN" else x.movedim(-1, 1)).flatten(2).transpose(1, 2)
    if heads == 1:
        return rows.unsqueeze(1)
    return rows.unflatten(-1, (heads, rows.shape[-1] // heads)).transpose(1, 2)


def from_rows(rows: Tensor, x: Tensor, layout: str) -> Tensor:
    """`rows` [B, H, N, C / H] in the shape of `x` but for its channels, dense, with the strides of `empty_like`."""
    sizes, strides, fits = _result_strides(x.shape, x.stride(), layout, rows.shape, rows.stride())
    if fits:
        return restrided(rows, sizes, strides)
    y = rows.new_empty_strided(sizes, strides)
    as_rows(y, layout, rows.shape[1]).copy_(rows)
    return y


def empty_like(x: Tensor, layout: str, channels: int, dtype: torch.dtype) -> Tensor:
    """A dense, uninitialised tensor in the shape and memory order of `x`, but with `channels` and of `dtype`."""
    return x.new_empty_strided(*dense_strides(x.shape, x.stride(), layout, channels), dtype=dtype)


def dense_strides(shape: Sequence[int], like: Sequence[int], layout: str, channels: int) -> tuple[list[int], list[int]]:
    """Sizes and strides of a result in `shape`, but with `channels`, and in the memory order of the strides `like`.

    The one place that decides the strides of results, for real and for fake tensors.
    """
    sizes = list(shape)
    channel = 1 if layout == "BCN" else len(sizes) - 1
    sizes[channel] = channels
    order: Sequence[int]
    if layout == "BHNC":
        order = FROM_FASTEST[_memory_order(shape, like)]
    else:
        others = [dim for dim in range(len(sizes) - 1, -1, -1) if dim != channel]
        order = [channel, *others] if channels_are_fastest(like, layout) else [*others[:-1], channel, 0]
    strides, step = [1] * len(sizes), 1
    for dim in order:
        strides[dim] = step
        step *= sizes[dim]
    return sizes, strides


# asked at every call in eager mode; fake tensors have sizes that are no keys
_known_strides = lru_cache(maxsize=1024)(dense_strides)


@lru_cache(maxsize=1024)
def _result_strides(
    shape: Sequence[int], like: Sequence[int], layout: str, rows: Sequence[int], got: Sequence[int]
) -> tuple[list[int], list[int], bool]:
    """`dense_strides` of what comes from `rows` [B, H, N, C / H], and whether the strides that they `got` fit."""
    heads, channels = rows[1], rows[3]
    sizes, strides = dense_strides(shape, like, layout, channels if layout == "BHNC" else heads * channels)
    if layout == "BHNC":
        wanted = strides
    else:
        position, channel = (strides[-1], strides[1]) if layout == "BCN" else strides[-2:]
        wanted = [strides[0], channels * channel, position, channel]
    return sizes, strides, all(got[dim] == wanted[dim] or rows[dim] == 1 for dim in range(4))


def as_own_tensor(tensor: Tensor) -> Tensor:
    """The same memory as a tensor that is nobody's view, so that the caller may change it in place."""
    return restrided(tensor, tensor.shape, tensor.stride()) if tensor._is_view() else tensor


def restrided(tensor: Tensor, sizes: Sequence[int], strides: Sequence[int]) -> Tensor:
    """The same memory with other sizes and strides as a tensor that is nobody's view: `tensor` itself if it is none."""
    if not tensor._is_view():
        return tensor.as_strided_(sizes, strides)
    return tensor.new_empty(0).set_(tensor.untyped_storage(), tensor.storage_offset(), sizes, strides)


def memory_order(rows: Tensor) -> str:
    """The dimensions of `rows` [B, H, N, C] from slowest to fastest in memory.

    One of "BHNC" (rows), "BNHC" (rows with the heads inside, as in a channels-last image) and "BHCN" (as in a
    contiguous image).
    """
    return _memory_order(rows.shape, rows.stride())


def _memory_order(shape: Sequence[int], strides: Sequence[int]) -> str:
    if not channels_are_fastest(strides, "BHNC"):
        return "BHCN"
    return "BNHC" if shape[1] > 1 and strides[1] < strides[2] else "BHNC"


def empty_like_order(rows: Tensor, channels: int | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """A dense, uninitialised [B, H, N, channels] in the memory order of `rows`, and in their dtype or `dtype`."""
    shape = rows.shape
    return rows.new_empty_strided(*_known_strides(shape, rows.stride(), "BHNC", channels or shape[3]), dtype=dtype)
