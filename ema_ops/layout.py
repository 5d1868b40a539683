"""The shapes in which features come, and their common view as rows with heads [B, H, N, C].

A layout names the dimensions of the features: "BNC" is [B, *spatial, C] (tokens), "BCN" is [B, C, *spatial] (images)
and "BHNC" is [B, H, N, C]. In the first two the channels are split over the heads.
"""

from __future__ import annotations

import math

from torch import Tensor


def channels_are_fastest(x: Tensor, layout: str) -> bool:
    """Whether neighbouring channels of `x` lie closer together in memory than neighbouring positions."""
    channel, position = (1, -1) if layout == "BCN" else (-1, -2)
    return x.stride(channel) <= x.stride(position)


def as_rows(x: Tensor, layout: str, heads: int) -> Tensor:
    """`x` as rows [B, H, N, C / H]; a view unless the strides of its spatial dimensions do not merge."""
    if layout == "BHNC":
        return x
    # flatten copies where it must: in the order that the memory of x has, so that the copy keeps it
    if channels_are_fastest(x, layout):
        rows = (x.movedim(1, -1) if layout == "BCN" else x).flatten(1, -2)
    else:
        rows = (x if layout == "BCN" else x.movedim(-1, 1)).flatten(2).transpose(1, 2)
    return rows.unflatten(-1, (heads, rows.shape[-1] // heads)).transpose(1, 2)


def from_rows(rows: Tensor, x: Tensor, layout: str) -> Tensor:
    """`rows` [B, H, N, C / H] in the shape of `x` but for its channels, dense, with the strides of `empty_like`."""
    if layout == "BHNC":
        y, channels = rows, rows.shape[3]
    else:
        y, channels = rows.transpose(1, 2).flatten(2), rows.shape[1] * rows.shape[3]
        y = y.transpose(1, 2).unflatten(2, x.shape[2:]) if layout == "BCN" else y.unflatten(1, x.shape[1:-1])
    sizes, strides = dense_strides(x, layout, channels)
    if all(size == 1 or got == wanted for size, got, wanted in zip(sizes, y.stride(), strides, strict=True)):
        return y.as_strided(sizes, strides)
    return x.new_empty_strided(sizes, strides).copy_(y)


def empty_like(x: Tensor, layout: str, channels: int) -> Tensor:
    """A dense, uninitialised tensor in the dtype, shape and memory order of `x`, but with `channels`."""
    return x.new_empty_strided(*dense_strides(x, layout, channels))


def dense_strides(x: Tensor, layout: str, channels: int) -> tuple[list[int], list[int]]:
    """Sizes and strides of a result in the shape and memory order of `x`, but with `channels`.

    The one place that decides the strides of results, for real and for fake tensors.
    """
    sizes = list(x.shape)
    sizes[1 if layout == "BCN" else -1] = channels
    if layout == "BHNC":
        order = ["BHNC".index(dim) for dim in memory_order(x)]
    else:
        channel = 1 if layout == "BCN" else x.dim() - 1
        order = [dim for dim in range(x.dim()) if dim != channel]
        order.insert(x.dim() - 1 if channels_are_fastest(x, layout) else 1, channel)
    strides = [0] * x.dim()
    for place, dim in enumerate(order):
        strides[dim] = math.prod(sizes[d] for d in order[place + 1 :])
    return sizes, strides


def as_own_tensor(tensor: Tensor) -> Tensor:
    """The same memory as a tensor that is nobody's view, so that the caller may change it in place."""
    if not tensor._is_view():
        return tensor
    own = tensor.new_empty(0)
    return own.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


def memory_order(rows: Tensor) -> str:
    """The dimensions of `rows` [B, H, N, C] from slowest to fastest in memory.

    One of "BHNC" (rows), "BNHC" (rows with the heads inside, as in a channels-last image) and "BHCN" (as in a
    contiguous image).
    """
    if not channels_are_fastest(rows, "BHNC"):
        return "BHCN"
    return "BNHC" if rows.shape[1] > 1 and rows.stride(1) < rows.stride(2) else "BHNC"


def empty_like_order(rows: Tensor, channels: int | None = None) -> Tensor:
    """A dense, uninitialised [B, H, N, channels] in the memory order and dtype of `rows`."""
    return empty_like(rows, "BHNC", rows.shape[3] if channels is None else channels)
