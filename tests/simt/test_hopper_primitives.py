"""The words of csrc/hopper/ptx.h, executed by the shim, against plain formulas."""

from __future__ import annotations

import ctypes

import emulation
import pytest
import torch

CUDA_ERROR_INVALID_VALUE, CUDA_ERROR_INVALID_CLUSTER_SIZE = 1, 912
ORDERS = ["forward", "reverse", "shuffled"]
bf16 = torch.bfloat16


@pytest.fixture(scope="module")
def primitives(can_build):
    library = emulation.build("primitives_hopper", [emulation.HERE / "primitives_hopper.cu"])
    return ctypes.CDLL(str(library))


@pytest.fixture(params=ORDERS)
def order(request, monkeypatch):
    monkeypatch.setenv("EMA_SIMT_ORDER", request.param)


def pointer(tensor):
    return ctypes.c_void_p(tensor.data_ptr())


def aligned(tensor):
    """The same numbers at a multiple of 16 bytes."""
    size = tensor.element_size()
    memory = torch.empty(tensor.numel() + 16 // size, dtype=tensor.dtype)
    start = -memory.data_ptr() % 16 // size
    return memory[start : start + tensor.numel()].view(tensor.shape).copy_(tensor)


def normal(*shape, dtype=torch.float32, seed=0):
    return aligned(torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype))


def box_of(matrices, column, line, head, batch, lines, columns):
    """A box [lines, columns] with zeros for what lies beyond the matrix."""
    box = torch.zeros(lines, columns, dtype=matrices.dtype)
    if not (0 <= head < matrices.shape[1] and 0 <= batch < matrices.shape[0]):
        return box
    for r in range(lines):
        for c in range(columns):
            if 0 <= line + r < matrices.shape[2] and 0 <= column + c < matrices.shape[3]:
                box[r, c] = matrices[batch, head, line + r, column + c]
    return box


@pytest.mark.parametrize("columns", [64, 32])
@pytest.mark.parametrize("to_others", [False, True])
@pytest.mark.parametrize("start", [(0, 0, 1, 1), (40, 7, 0, 1), (-8, -3, 1, 0), (304, 2, 0, 0), (0, 0, 2, 0)])
def test_boxes_there_and_back(primitives, order, start, to_others, columns):
    matrices = aligned(torch.arange(1, 2 * 2 * 20 * 264 + 1, dtype=torch.int16).view(2, 2, 20, 264))
    stored, seen = aligned(torch.zeros_like(matrices)), torch.full((4, 16, columns), -1, dtype=torch.int16)
    sizes = (ctypes.c_int * 4)(*reversed(matrices.shape))
    where = (ctypes.c_int * 4)(*start)
    assert primitives.boxes(*map(pointer, (matrices, stored, seen)), sizes, where, 16, columns, int(to_others)) == 0
    column, *others = start
    boxes = [box_of(matrices, column + columns * i, *others, 16, columns) for i in range(4)]
    expected = boxes[:1] * 4 if to_others else boxes
    assert torch.equal(seen, torch.stack(expected))
    for i in range(4):
        assert torch.equal(box_of(stored, column + columns * i, *others, 16, columns), expected[i] * (boxes[i] != 0))
    assert stored.count_nonzero() == sum((expected[i] * boxes[i].bool()).count_nonzero() for i in range(4))


def test_bytes_behind_each_other(primitives, order):
    numbers, out = normal(3, 16), normal(3, 16, seed=1)
    assert primitives.bytes(pointer(numbers), pointer(out)) == 0
    assert torch.equal(out, 2 * numbers)


@pytest.mark.parametrize("special", [None, float("inf"), float("nan")])
@pytest.mark.parametrize("b_transposed", [False, True])
@pytest.mark.parametrize("left", ["lines", "transposed", "registers"])
@pytest.mark.parametrize(
    ("columns", "dtype", "line"),
    [(32, bf16, 128), (32, torch.float16, 128), (256, bf16, 128), (32, bf16, 64), (256, bf16, 64)],
)
def test_products(primitives, order, columns, dtype, line, left, b_transposed, special):
    a, b = normal(2, 64, 64, dtype=dtype), normal(64, columns, dtype=dtype, seed=1)
    if special is not None:
        a[1, 5, 9] = special
    d = normal(2, 64, columns, seed=2)
    expected = d.double() + a.double() @ b.double()
    stored_a = aligned(a.mT.contiguous()) if left == "transposed" else a
    stored_b = b if b_transposed else aligned(b.T.contiguous())
    how = (int(dtype == torch.float16), columns, int(left == "transposed"), int(b_transposed), int(left == "registers"))
    assert primitives.product(*how, line, pointer(stored_a), pointer(stored_b), pointer(d)) == 0
    torch.testing.assert_close(d.double(), expected, rtol=1e-5, atol=2e-5, equal_nan=True)


def test_named_barriers(primitives, order):
    out = torch.full((3, 64), -1, dtype=torch.int32)
    assert primitives.meetings(pointer(out)) == 0
    expected = 100 * torch.arange(3, dtype=torch.int32)[:, None] + torch.arange(63, -1, -1, dtype=torch.int32)
    assert torch.equal(out, expected)


def test_numbers_of_8_bits(primitives):
    numbers, out = aligned(torch.arange(256, dtype=torch.uint8)), aligned(torch.zeros(256, dtype=torch.float16))
    assert primitives.widened(pointer(numbers), pointer(out)) == 0
    expected = numbers.view(torch.float8_e4m3fn).to(torch.float16)
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(out.signbit(), expected.signbit())


def test_stored_matrices(primitives):
    r = torch.arange(32 * 4 * 2, dtype=torch.int16).view(32, 4, 2)
    out = torch.empty(4, 8, 8, dtype=torch.int16)
    assert primitives.stored_matrices(pointer(r), pointer(out)) == 0
    for lane in range(32):
        for i in range(4):
            for v in range(2):
                assert out[i, lane % 4 * 2 + v, lane // 4] == r[lane, i, v]


@pytest.mark.parametrize(("blocks", "cluster"), [(1, 1), (6, 3), (16, 16)])
def test_clusters(primitives, order, blocks, cluster):
    out, count, total = torch.empty(blocks, cluster), torch.zeros(1, dtype=torch.int32), torch.ones(1)
    assert primitives.clusters(*map(pointer, (out, count, total)), blocks, cluster, 1) == 0
    expected_total = 1.0
    for number in range(blocks // cluster):
        expected_total = 2 * expected_total + number
    assert (count.item(), total.item()) == (blocks // cluster, expected_total)
    for block in range(blocks):
        peers = 10 * (torch.arange(cluster, dtype=torch.float32) + block // cluster * cluster)
        torch.testing.assert_close(out[block], peers + 1000 * (peers + 3) + 1e6 * (peers + 1))


def test_clusters_that_a_device_refuses(primitives):
    some = pointer(torch.zeros(1))
    assert primitives.clusters(some, some, some, 17, 17, 0) == CUDA_ERROR_INVALID_CLUSTER_SIZE
    assert primitives.clusters(some, some, some, 5, 2, 0) == CUDA_ERROR_INVALID_CLUSTER_SIZE


def test_tensor_maps_that_the_driver_refuses(primitives):
    memory = normal(64)
    assert primitives.refused_map(pointer(memory), ctypes.c_int64(8), 8) == 0
    for start, stride, lines in ((0, 9, 8), (0, 8, 0), (0, 8, 257), (2, 8, 8)):
        address = ctypes.c_void_p(memory.data_ptr() + start)
        assert primitives.refused_map(address, ctypes.c_int64(stride), lines) == CUDA_ERROR_INVALID_VALUE
