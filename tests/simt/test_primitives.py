"""The words that kernels are written in, executed by the shim, against plain formulas."""

from __future__ import annotations

import ctypes

import emulation
import pytest
import torch

CUDA_ERROR_INVALID_VALUE, CUDA_ERROR_INVALID_CONFIGURATION = 1, 9


@pytest.fixture(scope="module")
def primitives(can_build):
    return ctypes.CDLL(str(emulation.build("primitives", [emulation.HERE / "primitives.cu"])))


def pointer(tensor):
    return ctypes.c_void_p(tensor.data_ptr())


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def fragments_of_16_bits(left, right):
    """A [16, 16] and B [16, 8] as the registers [32, 4] and [32, 2] of a warp, from the tables of the PTX manual."""
    a, b = torch.empty(32, 4, 2, dtype=left.dtype), torch.empty(32, 2, 2, dtype=left.dtype)
    for lane in range(32):
        for i in range(8):
            row = lane // 4 + (8 if i in (2, 3, 6, 7) else 0)
            a[lane, i // 2, i % 2] = left[row, lane % 4 * 2 + i % 2 + (8 if i >= 4 else 0)]
        for i in range(4):
            b[lane, i // 2, i % 2] = right[lane % 4 * 2 + i % 2 + (8 if i >= 2 else 0), lane // 4]
    return a.contiguous(), b.contiguous()


def fragments_of_tf32(left, right):
    """A [16, 8] and B [8, 8] as the registers of a warp."""
    a, b = torch.empty(32, 4), torch.empty(32, 2)
    for lane in range(32):
        for i in range(4):
            a[lane, i] = left[lane // 4 + (8 if i in (1, 3) else 0), lane % 4 + (4 if i >= 2 else 0)]
        for i in range(2):
            b[lane, i] = right[lane % 4 + 4 * i, lane // 4]
    return a, b


def accumulators(d):
    """Registers [32, 4] as the matrix [16, 8]."""
    matrix = torch.empty(16, 8)
    for lane in range(32):
        for i in range(4):
            matrix[lane // 4 + (8 if i >= 2 else 0), lane % 4 * 2 + i % 2] = d[lane, i]
    return matrix


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_products_of_16_bits(primitives, name, dtype):
    left, right, before = normal(16, 16, dtype=dtype), normal(16, 8, dtype=dtype, seed=1), normal(32, 4, seed=2)
    left[3, 5], left[2, 1] = torch.finfo(dtype).smallest_normal / 4, 65504.0
    a, b = fragments_of_16_bits(left, right)
    d = before.clone()
    assert getattr(primitives, f"multiply_{name}")(*map(pointer, (a, b, d))) == 0
    expected = left.double() @ right.double() + accumulators(before).double()
    torch.testing.assert_close(accumulators(d).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("special", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_products_of_infinities(primitives, name, dtype, special):
    left, right = torch.ones(16, 16, dtype=dtype), torch.ones(16, 8, dtype=dtype)
    left[4, 7] = special
    a, b = fragments_of_16_bits(left, right)
    d = torch.zeros(32, 4)
    assert getattr(primitives, f"multiply_{name}")(*map(pointer, (a, b, d))) == 0
    torch.testing.assert_close(accumulators(d), left.float() @ right.float(), equal_nan=True)


def test_products_of_tf32_read_the_upper_19_bits(primitives):
    left, right, before = normal(16, 8), normal(8, 8, seed=1), normal(32, 4, seed=2)
    a, b = fragments_of_tf32(left, right)
    d = before.clone()
    assert primitives.multiply_tf32(*map(pointer, (a, b, d))) == 0
    cut = [(m.view(torch.int32) & ~0x1FFF).view(torch.float32).double() for m in (left, right)]
    expected = cut[0] @ cut[1] + accumulators(before).double()
    torch.testing.assert_close(accumulators(d).double(), expected, rtol=1e-6, atol=1e-6)
    assert (expected - left.double() @ right.double() - accumulators(before).double()).abs().max() > 1e-5


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices(primitives, transposed):
    rows = torch.arange(4 * 8 * 8, dtype=torch.int16).view(4, 8, 8)
    r = torch.empty(32, 4, 2, dtype=torch.int16)
    function = primitives.load_matrices_transposed if transposed else primitives.load_matrices
    assert function(pointer(rows), pointer(r)) == 0
    for lane in range(32):
        for i in range(4):
            matrix = rows[i].T if transposed else rows[i]
            assert r[lane, i].tolist() == matrix[lane // 4, lane % 4 * 2 : lane % 4 * 2 + 2].tolist()


@pytest.mark.parametrize("bytes_", [0, 2, 10, 16])
@pytest.mark.parametrize("pending", [0, 1, 2, 3, 9])
def test_a_copy_happens_when_it_is_waited_for(primitives, bytes_, pending):
    source = torch.arange(1, 49, dtype=torch.uint8)
    aligned = torch.empty(64, dtype=torch.uint8)
    aligned = aligned[-aligned.data_ptr() % 16 :][:48].copy_(source)
    seen = torch.empty(48, dtype=torch.uint8)
    assert primitives.copy(pointer(aligned), pointer(seen), bytes_, pending) == 0
    expected = aligned.view(3, 16).clone()
    expected[:, bytes_:] = 0
    expected[max(0, 3 - pending) :] = 255  # what was not waited for is not there
    assert seen.view(3, 16).tolist() == expected.tolist()


def test_numbers(primitives):
    values = torch.cat([normal(500) * 30, torch.tensor([0.0, -0.0, 1 + 2.0**-11, 1 + 2.0**-12, -1 - 2.0**-11])])
    values = torch.cat([values, torch.tensor([-126.0, -126.5, -200.0, 127.5, 128.0, float("inf"), float("-inf")])])
    tf32, power = torch.empty_like(values), torch.empty_like(values)
    assert primitives.numbers(pointer(values), pointer(tf32), pointer(power), len(values)) == 0
    exact = values.double()
    unit = 2.0 ** (torch.frexp(exact).exponent - 11).double()
    nearest = torch.sign(exact) * torch.floor(exact.abs() / unit + 0.5) * unit  # ties away from zero
    assert torch.equal(tf32.double(), torch.where(exact.isfinite(), nearest, exact))
    expected = torch.exp2(exact)
    expected[expected < 2.0**-126] = 0
    torch.testing.assert_close(power.double(), expected.float().double(), rtol=3e-7, atol=0)


def test_shuffles(primitives):
    out = torch.empty(6, 2, 32, dtype=torch.int32)
    assert primitives.shuffles(pointer(out)) == 0
    lane = torch.arange(32)
    expected = [
        torch.full_like(lane, 5),
        lane // 8 * 8 + lane // 2 % 8,
        lane ^ 9,
        torch.where(lane % 8 >= 4, lane - 4, lane),  # an earlier segment is read, a later one is not
        torch.where(lane % 16 + 3 < 16, lane + 3, lane),
        torch.where(lane >= 3, lane - 3, lane),
    ]
    for ours, theirs in zip(out, expected, strict=True):
        assert ours.tolist() == [theirs.tolist()] * 2


@pytest.mark.parametrize("order", ["forward", "reverse", "shuffled"])
@pytest.mark.parametrize("processors", ["1", "2"])
def test_places_and_counts(primitives, order, processors, monkeypatch):
    monkeypatch.setenv("EMA_SIMT_ORDER", order)
    monkeypatch.setenv("EMA_SIMT_THREADS", processors)
    places, total = torch.full((12, 40), -1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    assert primitives.places(pointer(places), pointer(total)) == 0
    of_a_block = sum(range(40))
    assert places.tolist() == [[block * 1000 + of_a_block] * 40 for block in range(12)]
    assert total.item() == 12 * of_a_block


def test_static_shared_memory_does_not_compile(can_build, tmp_path):
    """Nobody would see reads before writes in it, or writes beyond its end."""
    source = tmp_path / "static.cu"
    source.write_text('#include "device/platform.h"\n__global__ void kernel() { __shared__ int total; total = 0; }\n')
    with pytest.raises(RuntimeError, match="shared memory comes from EMA_SHARED"):
        emulation.build("static", [source])


def test_launches_that_a_device_refuses(primitives):
    assert primitives.refused(1025, 0) == CUDA_ERROR_INVALID_CONFIGURATION
    assert primitives.refused(0, 0) == CUDA_ERROR_INVALID_CONFIGURATION
    assert primitives.refused(32, 228 << 10) == CUDA_ERROR_INVALID_VALUE
