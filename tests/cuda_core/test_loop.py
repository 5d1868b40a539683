"""The loop and its halves, executed on the CPU, against float64."""

from __future__ import annotations

import mmap

import pytest
import torch
from backend_checks import check_forward, check_loop, make_bases, make_features
from loop_tests import LoopTests, dtypes, orders
from parts_tests import PartsTests

import ema_ops

NO_RESERVE = 0x4000  # MAP_NORESERVE of Linux, which `mmap` names from Python 3.13 on


class TestLoop(LoopTests):
    """Of this backend."""


class TestParts(PartsTests):
    """Of this backend."""


# beside the sizes of the kernels' tiles, and on both sides of what is fused
@dtypes
@orders
@pytest.mark.parametrize(
    ("positions", "channels", "num_bases"),
    [
        (2, 64, 65),
        (97, 3, 64),
        (64, 64, 1),
        (130, 64, 64),
        (97, 130, 7),
        (65, 130, 200),
        (40, 512, 64),
    ],
    ids=str,
)
def test_sizes(backend, positions, channels, num_bases, layout, dtype):
    check_loop(
        make_features((1, positions, channels), dtype, layout), make_bases(channels, num_bases), backend, num_iters=2
    )


@dtypes
@pytest.mark.parametrize(("channels", "num_bases"), [(512, 64), (40, 200)])
def test_many_bases_of_a_single_position(backend, channels, num_bases, dtype):
    """All bases coincide, so that all terms of a sum are equal and every rounding of a long one goes the same way."""
    check_forward(make_features((2, 1, channels), dtype), make_bases(channels, num_bases), backend)


@dtypes
@orders
def test_a_picture_of_many_tiles(backend, layout, dtype):
    check_loop(make_features((1, 65 * 65, 3), dtype, layout), make_bases(3, 5), backend, num_iters=2)


@orders
@pytest.mark.parametrize("offset", [1, 2, 3, 4, 7])
@dtypes
def test_unaligned_memory(backend, offset, layout, dtype):
    x = make_features((1, 64, 64), dtype, layout)
    memory = torch.zeros(offset + x.numel(), dtype=dtype)
    x = memory[offset:].as_strided(x.shape, x.stride(), offset).copy_(x)
    check_forward(x, make_bases(64, 6), backend, num_iters=1)


FAR = 2**31 + 8  # elements
# sizes of x [B, N, C], and its strides: from image to image, position to position, channel to channel
SPARSE = {
    "images": ((2, 70, 16), (FAR, 16, 1)),
    "positions": ((1, 70, 16), (16, FAR // 64, 1)),
    "channels": ((1, 70, 16), (16, 1, FAR // 8)),
}


@pytest.mark.parametrize("num_bases", [9, 70])
@pytest.mark.parametrize("apart", SPARSE)
def test_features_beyond_32_bits(backend, apart, num_bases):
    """In address space of which next to nothing is memory."""
    sizes, strides = SPARSE[apart]
    space = mmap.mmap(-1, 2 * (FAR * 2 + 2**12), flags=mmap.MAP_PRIVATE | NO_RESERVE)
    x = torch.frombuffer(space, dtype=torch.bfloat16).as_strided(sizes, strides)
    x.copy_(make_features(sizes, torch.bfloat16))
    assert sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)) > 2**31
    check_loop(x, make_bases(16, num_bases), backend, num_iters=2)


def test_tf32_where_the_user_allows_it(backend, monkeypatch):
    x, bases = make_features((1, 70, 40), torch.float32), make_bases(40, 9)
    _, exact = check_forward(x, bases, backend)
    monkeypatch.setattr("ema_ops.backends.cuda.backend.tf32_allowed", lambda: True)
    _, rounded = ema_ops.em_attention(x, bases, backend=backend)
    error = (rounded - exact).norm() / exact.norm()
    assert 1e-5 < error < 2e-3
