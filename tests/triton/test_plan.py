"""Splits, layouts and offsets: what decides which element a program touches."""

from __future__ import annotations

import pytest
import torch
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st

from ema_ops.backends.triton.forward import Features
from ema_ops.backends.triton.plan import block, layout_of, split_tiles
from ema_ops.backends.triton.tiles import image_pointer, kernel, tile_offsets
from ema_ops.problem import Problem

KIB = 1024


@given(
    st.integers(1, 300), st.integers(1, 70000), st.integers(1, 64 * KIB), st.integers(1, 256 * KIB), st.integers(1, 200)
)
def test_splits_cover_every_tile_once(images, tiles, tile_bytes, slot_bytes, multiprocessors):
    splits = split_tiles(images, tiles, tile_bytes, slot_bytes, multiprocessors)
    assert splits.number >= 1
    assert (splits.number - 1) * splits.tiles < tiles <= splits.number * splits.tiles


def test_splits_weigh_the_bytes_of_their_slots():
    """C = 512, K = 64 in bf16 on 132 multiprocessors: 132 images are not split, one is, but not 132 ways."""
    tile, slot = 32 * 512 * 2, 64 * 512 * 4
    assert split_tiles(132, 133, tile, slot, 132).number == 1
    one_image = split_tiles(1, 133, tile, slot, 132).number
    assert 16 <= one_image < 100
    assert split_tiles(1, 133, tile, 16 * slot, 132).number < one_image
    assert split_tiles(16, 133, tile, slot, 132).number == 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layout_knows_when_whole_vectors_can_be_loaded(dtype):
    vector = 16 // dtype.itemsize
    rows = torch.zeros(2, 1, 7, 48, dtype=dtype)
    assert layout_of(rows).constants == (vector, False)
    assert layout_of(rows[..., 1:]).constants == (1, False)
    assert layout_of(rows[..., ::2]).constants == (1, False)
    assert layout_of(torch.zeros(2, 1, 7, 19, dtype=dtype)).constants == (1, False)
    image = torch.zeros(2, 1, 19, 48, dtype=dtype).transpose(2, 3)
    assert layout_of(image).constants == (vector, True)
    assert layout_of(image[:, :, : 2 * vector]).constants == (vector, True)
    assert layout_of(image[:, :, : 2 * vector + 1]).constants == (1, True)


@pytest.mark.parametrize(("positions", "copied"), [(48, False), (49, True)])
def test_an_image_with_odd_positions_is_transposed_once(positions, copied):
    x = torch.randn(2, 2, 70, positions).half().transpose(2, 3)
    problem = Problem.build(x, torch.zeros(2, 70, 3))
    features = Features.of(problem, x)
    assert (features.tensor is not x) == copied
    assert features.layout.channels_first != copied
    assert torch.equal(features.tensor, x)


@kernel
def offsets_kernel(result, image, heads, x_batch, x_head, x_slow, x_fast, n, c, CHANNELS_FIRST: tl.constexpr):
    """The offset of the last element of a tile that ends at (n, c)."""
    rows, columns = n - 15 + tl.arange(0, 16), c - 15 + tl.arange(0, 16)
    start = image_pointer(0, image, heads, x_batch, x_head, 8)
    offsets = tile_offsets(rows, columns, x_slow, x_fast, 8, CHANNELS_FIRST)
    tl.store(result, start + tl.max(tl.max(offsets, 1), 0))


@pytest.mark.parametrize("channels_first", [False, True])
def test_offsets_beyond_int32(channels_first):
    result = torch.zeros(1, dtype=torch.int64)
    image, heads, batch, head, slow, fast, n, c = 7, 2, 2**28, 2**27, 2**20, 3, 5000, 1023
    offsets_kernel[(1,)](result, image, heads, batch, head, slow, fast, n, c, CHANNELS_FIRST=channels_first)
    inside = n * fast + c * slow * 8 if channels_first else n * slow * 8 + c * fast
    assert result.item() == 3 * batch * 8 + head * 8 + inside


@pytest.mark.parametrize(("size", "expected"), [(1, 16), (16, 16), (17, 32), (512, 512), (513, 1024)])
def test_block(size, expected):
    assert block(size) == expected
