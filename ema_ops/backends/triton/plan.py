"""How a call is launched, as pure functions of shapes, strides and the number of multiprocessors.

Nothing here imports triton. Neither B nor N ends up in a compile-time constant.
"""

from __future__ import annotations

from functools import lru_cache
from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor

# what the interpreter plays: enough for several splits of a small image
INTERPRETED_MULTIPROCESSORS = 6
VECTOR_BYTES = 16


class Layout(NamedTuple):
    """The strides of a tensor [B, H, N, C] as the kernels take them.

    `fast` is the stride of the inner of the last two dimensions in memory, C or (if `channels_first`) N; `slow` that
    of the other one. `batch`, `head`, `slow` and, if `channels_first`, `positions` count in steps of `unit` elements,
    so that a kernel that multiplies by the constant `unit` is known to load whole vectors.
    """

    batch: int
    head: int
    slow: int
    fast: int
    positions: int
    unit: int
    channels_first: bool

    @property
    def strides(self) -> tuple[int, int, int, int]:
        """The four strides in the order in which every kernel takes them."""
        return self.batch, self.head, self.slow, self.fast

    @property
    def constants(self) -> tuple[int, bool]:
        """`unit` and `channels_first`, in the order in which every kernel takes them."""
        return self.unit, self.channels_first


def layout_of(tensor: Tensor) -> Layout:
    """The layout of `tensor` [B, H, N, C], whatever its strides."""
    batches, heads, positions, _ = tensor.shape
    batch, head, position, channel = tensor.stride()
    batch, head = batch if batches > 1 else 0, head if heads > 1 else 0
    channels_first = position < channel
    fast, slow = (position, channel) if channels_first else (channel, position)
    vector = VECTOR_BYTES // tensor.element_size()
    steps = gcd(batch, head, slow, positions if channels_first else 0)
    aligned = fast == 1 and steps % vector == 0 and tensor.data_ptr() % VECTOR_BYTES == 0
    unit = vector if aligned else 1
    return Layout(
        batch // unit,
        head // unit,
        slow // unit,
        fast,
        positions // unit if channels_first else positions,
        unit,
        channels_first,
    )


class Splits(NamedTuple):
    """Every image's tiles in `number` splits of `tiles` tiles each, the last one maybe shorter."""

    number: int
    tiles: int


@lru_cache(maxsize=4096)
def split_tiles(images: int, tiles: int, tile_bytes: int, slot_bytes: int, multiprocessors: int) -> Splits:
    """The cheapest split of every image's `tiles` tiles of `tile_bytes` between programs.

    The cost of a split is what one multiprocessor moves: the tiles of its programs, and its share of the slots of
    partial sums (`slot_bytes` each), which are written once and read once.
    """

    def cost(count: int) -> float:
        waves = ceil_div(images * count, multiprocessors)
        return waves * ceil_div(tiles, count) * tile_bytes + 2 * images * count * slot_bytes / multiprocessors

    most = min(tiles, max(1, 4 * multiprocessors // images))
    each = ceil_div(tiles, min(range(1, most + 1), key=cost))
    return Splits(ceil_div(tiles, each), each)


def multiprocessors(device: torch.device) -> int:
    """Multiprocessors (compute units) of `device`; a constant on the interpreter's CPU."""
    if device.type == "cpu":
        return INTERPRETED_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def ceil_div(numerator: int, denominator: int) -> int:
    """The quotient rounded up."""
    return -(-numerator // denominator)


def block(size: int) -> int:
    """The power of two that holds `size`, at least 16, the smallest side of a `tl.dot`."""
    return max(16, 1 << (size - 1).bit_length())


def dense_matrices(bases: Tensor) -> Tensor:
    """`bases` [B, H, C, K] in float32 with dense matrices; images and heads may still share theirs (stride 0)."""
    bases = bases.to(torch.float32)
    channels, num_bases = bases.shape[-2:]
    return bases if bases.stride()[-2:] == (num_bases, 1) and channels else bases.contiguous()
