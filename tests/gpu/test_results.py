"""Every GPU backend against the reference in float64, by the error rule, on shapes people use."""

import pytest
import torch
from calls import ORDERS, check_loop, draw_call, draw_unit, same_bits
from examples import features, unit_bases
from judge import assert_close_to_reference
from unit_checks import check_unit, run_unit

import ema_ops
from ema_ops import reference

SHAPES = [
    (1, 1, 64, 7),
    (2, 97, 19, 7),
    (2, 33 * 33, 512, 64),
    (4, 65 * 65, 512, 64),
    (1, 97 * 97, 256, 64),
    (2, 1000, 1024, 64),
    (2, 1000, 512, 256),
    (3, 301, 64, 16),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@dtypes
@pytest.mark.parametrize("order", ["rows", "columns"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loop(backend, dtype, order, shape):
    call = draw_call(backend, shape, dtype, order)
    check_loop(call)
    if shape[1] > 1:
        assert call()[0].stride() == call.x.stride()


@dtypes
@pytest.mark.parametrize("order", ["rows", "columns"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_unit(backend, dtype, order, shape):
    if backend != "cuda":
        pytest.skip(f"backend {backend} has the loop only")
    x, parameters = draw_unit(shape, dtype, order)
    first = check_unit(x, parameters, backend)
    for _ in range(10):
        assert same_bits(run_unit(x, parameters, backend=backend), first)


@dtypes
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [(2, 33 * 33, 64, 16), (2, 129, 129, 70)], ids=str)
def test_odd_sizes_and_slices_that_are_not_aligned(backend, dtype, order, shape):
    check_loop(draw_call(backend, shape, dtype, order))


@dtypes
@pytest.mark.parametrize(("grad_iters", "eps_mode"), [(1, "add"), (2, "max"), (None, "max")])
def test_weights_truncation_and_eps_mode(backend, dtype, grad_iters, eps_mode):
    weight = (torch.rand(2, 500, generator=torch.Generator().manual_seed(5)) > 0.3).cuda()
    options = {"weight": weight, "grad_iters": grad_iters, "eps_mode": eps_mode}
    check_loop(draw_call(backend, (2, 500, 96, 24), dtype, **options))


@dtypes
def test_heads_in_an_image(backend, dtype):
    for memory_format in (torch.contiguous_format, torch.channels_last):
        layer = ema_ops.EMAttention(64, 16, num_heads=4, backend=backend).cuda().eval()
        x = torch.randn(2, 64, 33, 33, device="cuda", dtype=dtype).to(memory_format=memory_format).requires_grad_()
        y = layer(x)
        y.float().sum().backward()
        rows = x.detach().flatten(2).unflatten(1, (4, 16)).mT
        exact, _ = reference.em_attention(rows.double(), layer.bases.double())
        plain, _ = reference.em_attention(rows, layer.bases.to(dtype))
        assert_close_to_reference(y.flatten(2).unflatten(1, (4, 16)).mT, exact, plain)
        assert y.is_contiguous(memory_format=memory_format)
        assert x.grad.isfinite().all()


@dtypes
def test_parts(backend, dtype):
    x, bases = features(2, 777, 80, dtype=dtype).cuda(), unit_bases(2, 80, 20, dtype=torch.float32).cuda()
    values, bias = features(2, 48, 20, dtype=torch.float32, seed=3).cuda(), features(2, 20, seed=4).float().cuda()

    def run(kind, ours):
        leaves = [x.to(kind)] + [t.to(torch.float32 if ours else kind) for t in (bases, values, bias)]
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        a, b, v, c = leaves
        if ours:
            sums, mass = ema_ops.em_step(a, b, logit_bias=c, backend=backend)
            y = ema_ops.em_reconstruct(a, b, v, logit_bias=c, backend=backend)
        else:
            z = reference.e_step(a, b, 1.0, c)
            (sums, mass), y = reference.weighted_sums(a, z), z @ v.mT
        loss = sums.double().mean() + mass.double().square().mean() + y.double().square().mean()
        return sums, mass, y, *torch.autograd.grad(loss, leaves)

    for got, want, simple, factor in zip(
        run(dtype, True), run(torch.float64, False), run(dtype, False), (2, 2, 2, 3, 3, 3, 3), strict=True
    ):
        assert_close_to_reference(got, want, simple, factor=factor)


@pytest.fixture
def matmul():
    """PyTorch's setting of float32 products; a test may change it."""
    setting = torch.backends.cuda.matmul
    before = setting.fp32_precision
    yield setting
    setting.fp32_precision = before


def test_tf32_products_where_pytorch_may_use_them(backend, matmul):
    """Under either setting as good as PyTorch's own products, and not the same numbers."""
    call, results = draw_call(backend, (2, 1024, 512, 64), torch.float32), {}
    for precision in ("ieee", "tf32"):
        matmul.fp32_precision = precision
        check_loop(call, case=precision)
        results[precision] = call()
    if torch.cuda.get_device_capability() >= (8, 0):
        assert not torch.equal(results["ieee"][0], results["tf32"][0])
