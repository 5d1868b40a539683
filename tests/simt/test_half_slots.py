"""Slots of float16: what warpgroups store in them and what the kernels behind them add up again."""

from __future__ import annotations

import ctypes

import emulation
import pytest
import torch

ROUNDING = 2.0**-11  # of float16
SMALLEST = 2.0**-28  # of the largest sum that shares the power: above it all digits are kept, below it these are lost:
LOST = 2.0**-39


@pytest.fixture(scope="module")
def slots(can_build):
    library = ctypes.CDLL(str(emulation.build("half_slots", [emulation.HERE / "half_slots.cu"])))
    library.slot_bytes.restype = ctypes.c_int64
    return library


@pytest.fixture(params=["forward", "shuffled"])
def order(request, monkeypatch):
    monkeypatch.setenv("EMA_SIMT_ORDER", request.param)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def there_and_back(slots, sums, *, channels=None, lines=8):
    """Totals [images, 64, width] of sums [images, splits, 64, width]."""
    images, splits, bases, width = sums.shape
    memory = torch.full((images * splits * slots.slot_bytes(width) // 4 + 4,), torch.nan)
    start = -memory.data_ptr() % 16 // 4
    totals = torch.full((images, bases, width), torch.nan)
    pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (sums.contiguous(), memory[start:], totals))
    assert slots.there_and_back(*pointers, images, splits, channels or width, lines) == 0
    return totals


@pytest.mark.parametrize("lines", [8, 4, 1])
@pytest.mark.parametrize(("splits", "channels"), [(1, 512), (3, 130), (8, 512), (19, 40), (67, 200)])
def test_every_sum_is_rounded_once(slots, order, splits, channels, lines):
    width = -(-channels // 64) * 64
    sums = normal(1, splits, 64, width) * torch.exp2(8 * normal(64, 1, seed=1)) * torch.exp2(4 * normal(width, seed=2))
    totals = there_and_back(slots, sums, channels=channels, lines=lines)
    assert (totals[..., channels:] == 0).all()
    error = (totals.double() - sums.double().sum(1)).abs()
    sizes = sums.double().abs()
    largest = sizes.unflatten(-1, (-1, 64)).amax(-1, keepdim=True).expand(-1, -1, -1, -1, 64).flatten(-2)
    assert (error <= 1.01 * (ROUNDING * sizes + LOST * largest).sum(1))[..., :channels].all()
    assert error[..., :channels].max() > 0


def test_half_as_many_bytes(slots):
    assert slots.slot_bytes(512) == 64 * (512 * 2 + 512 // 64 * 4)


@pytest.mark.parametrize("size", [0.0, 2.0**-149, 2.0**-130, 2.0**-126, 1.0, 65504.0, 2.0**126])
def test_sums_of_any_size(slots, size):
    """Subnormal ones too, and an outlier that shares its power with sums a million times smaller."""
    sums = normal(1, 1, 64, 64).clamp(-3, 3) * size
    sums[..., 7] *= 2.0**-20
    totals = there_and_back(slots, sums)
    kept = sums.abs() >= SMALLEST * sums.abs().amax(-1, keepdim=True)
    error = (totals - sums[0]).abs()
    assert (error <= ROUNDING * sums[0].abs() + 2.0**-149)[kept[0]].all()
    assert kept[..., 7].float().mean() > 0.9


@pytest.mark.parametrize("special", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_stays_alone(slots, special):
    sums = normal(2, 3, 64, 128)
    expected = there_and_back(slots, sums)
    sums[1, 2, 9, 70] = special
    totals = there_and_back(slots, sums)
    torch.testing.assert_close(totals[1, 9, 70], torch.tensor(special), equal_nan=True)
    near, others = torch.zeros_like(totals, dtype=torch.bool), torch.ones_like(totals, dtype=torch.bool)
    near[1, 9, 64:], others[1, 9, 64:] = True, False
    near[1, 9, 70] = False
    assert torch.equal(totals[others], expected[others])
    torch.testing.assert_close(totals[near], expected[near], rtol=2 * ROUNDING, atol=2 * ROUNDING)
