"""Every kernel once, on shapes so small that it can run under compute-sanitizer. Judged on the CPU."""

import pytest
import torch
from calls import check_loop, draw_call, draw_unit
from examples import features, unit_bases
from judge import assert_close_to_reference
from unit_checks import check_unit

import ema_ops
from ema_ops import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
# the second has more bases than one kernel for E-step and M-step takes
shapes = pytest.mark.parametrize("shape", [(2, 131, 70, 9), (2, 131, 70, 70)], ids=str)


@dtypes
@shapes
@pytest.mark.parametrize("order", ["rows", "slice of columns"])
def test_small_loop(backend, dtype, shape, order):
    check_loop(draw_call(backend, shape, dtype, order), on="cpu")


@pytest.mark.parametrize("order", ["slice of rows", "columns"])
def test_small_loop_with_weights(backend, order):
    weight = torch.rand(2, 131, generator=torch.Generator().manual_seed(5)).cuda()
    check_loop(draw_call(backend, (2, 131, 70, 9), order=order, weight=weight), on="cpu")


def test_all_channels_of_a_block(backend):
    check_loop(draw_call(backend, (1, 200, 512, 64)), on="cpu")


@dtypes
@shapes
@pytest.mark.parametrize("order", ["rows", "slice of columns"])
def test_small_unit(backend, dtype, shape, order):
    if backend != "cuda":
        pytest.skip(f"backend {backend} has the loop only")
    x, parameters = draw_unit(shape, dtype, order)
    weight = torch.rand(x.shape[:3], generator=torch.Generator().manual_seed(5)).cuda()
    check_unit(x, parameters, backend, on="cpu", weight=weight, num_iters=2)


def test_small_tf32(backend):
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    call = draw_call(backend, (2, 131, 70, 9), torch.float32)
    try:
        matmul.fp32_precision = "tf32"
        y = call()[0]
    finally:
        matmul.fp32_precision = before
    exact, _ = reference.em_attention(call.x.detach().double(), call.bases.detach().double())
    # ten bits of the mantissa are left of every factor
    assert (y.double() - exact).norm() <= 2**-9 * exact.norm()


@dtypes
@shapes
def test_small_parts(backend, dtype, shape):
    batch, positions, channels, num_bases = shape
    x, bases = features(batch, positions, channels, dtype=dtype), unit_bases(channels, num_bases, dtype=torch.float32)

    def run(step, reconstruct, kind, bases_kind, device):
        rows, matrix = (t.to(device, k).requires_grad_() for t, k in ((x, kind), (bases, bases_kind)))
        sums, mass = step(rows, matrix)
        y = reconstruct(rows, matrix)
        loss = sums.double().mean() + mass.double().square().mean() + y.double().square().mean()
        return [t.cpu() for t in (sums, mass, y, *torch.autograd.grad(loss, (rows, matrix)))]

    def plain_step(rows, matrix):
        return reference.weighted_sums(rows, reference.e_step(rows, matrix, 1.0))

    def plain_reconstruct(rows, matrix):
        return reference.e_step(rows, matrix, 1.0) @ matrix.mT

    ours = run(
        lambda rows, matrix: ema_ops.em_step(rows, matrix, backend=backend),
        lambda rows, matrix: ema_ops.em_reconstruct(rows, matrix, matrix, backend=backend),
        dtype, torch.float32, "cuda",
    )  # fmt: skip
    exact, plain = (run(plain_step, plain_reconstruct, kind, kind, "cpu") for kind in (torch.float64, dtype))
    for got, want, simple, factor in zip(ours, exact, plain, (2, 2, 2, 3, 3), strict=True):
        assert_close_to_reference(got, want, simple, factor=factor)
