"""Every GPU backend against the reference in float64, by the error rule, on shapes people use."""

import pytest
import torch
from examples import features, unit_bases
from judge import assert_close_to_reference

import ema_ops
from ema_ops import reference

BACKENDS = [name for name in ema_ops.available_backends() if name != "torch"]
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


def on_gpu(function, x, bases, grad_y, dtype, **options):
    leaves = [x.to(dtype).requires_grad_(), bases.to(torch.promote_types(dtype, torch.float32)).requires_grad_()]
    y, last = function(*leaves, **options)
    return y, last, *torch.autograd.grad(y, leaves, grad_y.to(y.dtype), allow_unused=True)


def plain_formula(x, bases, **options):
    return reference.em_attention(x, bases.to(x.dtype), **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("order", ["rows", "columns"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loop(backend, dtype, order, shape):
    batch, positions, channels, num_bases = shape
    x = features(batch, positions, channels, dtype=dtype, order=order).cuda()
    bases = unit_bases(channels, num_bases, dtype=torch.float32).cuda()
    grad_y = features(batch, positions, channels, dtype=dtype, order=order, seed=2).cuda()
    ours = on_gpu(ema_ops.em_attention, x, bases, grad_y, dtype, backend=backend)
    plain = on_gpu(plain_formula, x, bases, grad_y, dtype)
    exact = on_gpu(plain_formula, x, bases, grad_y, torch.float64)
    assert ours[0].stride() == x.stride()
    names = ["y", "bases", "grad_x", "grad_bases"]
    if positions == 1:
        # all bases become the one position then, and their exact gradient is 0
        assert ours[3].isfinite().all()
        names.pop()
    for name, got, want, simple, factor in zip(names, ours, exact, plain, (2, 2, 3, 3), strict=False):
        assert_close_to_reference(got, want, simple, factor=factor, name=name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("grad_iters", "eps_mode"), [(1, "add"), (2, "max"), (None, "max")])
def test_weights_truncation_and_eps_mode(backend, dtype, grad_iters, eps_mode):
    x, bases = features(2, 500, 96, dtype=dtype).cuda(), unit_bases(96, 24, dtype=torch.float32).cuda()
    grad_y, weight = features(2, 500, 96, dtype=dtype, seed=2).cuda(), (torch.rand(2, 500) > 0.3).cuda()
    options = {"grad_iters": grad_iters, "eps_mode": eps_mode}
    ours = on_gpu(ema_ops.em_attention, x, bases, grad_y, dtype, backend=backend, weight=weight, **options)
    plain = on_gpu(plain_formula, x, bases, grad_y, dtype, weight=weight.to(dtype), **options)
    exact = on_gpu(plain_formula, x, bases, grad_y, torch.float64, weight=weight.double(), **options)
    for got, want, simple, factor in zip(ours, exact, plain, (2, 2, 3, 3), strict=True):
        if want is None:
            assert got is None
        else:
            assert_close_to_reference(got, want, simple, factor=factor)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
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
