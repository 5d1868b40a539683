"""The gradient of the loop in the interpreter, against float64 automatic differentiation of the reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from judge import assert_close_to_reference

import ema_ops
from ema_ops import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = ["rows", "image", "heads inside", "slice"]


def make_features(sizes, dtype, layout="rows", seed=0):
    """Normal features [B, N, C] or [B, H, N, C] in one of the memory orders, each one different."""
    generator = torch.Generator().manual_seed(seed)
    *outer, positions, channels = sizes
    if layout == "image":
        return torch.randn(*outer, channels, positions, generator=generator).to(dtype).transpose(-1, -2)
    if layout == "heads inside":
        return torch.randn(outer[0], positions, *outer[1:], channels, generator=generator).to(dtype).transpose(1, -2)
    if layout == "slice":
        wide = torch.randn(*outer, positions + 3, channels + 5, generator=generator).to(dtype)
        return wide[..., 1 : 1 + positions, 2 : 2 + channels]
    return torch.randn(*outer, positions, channels, generator=generator).to(dtype)


def make_bases(*sizes, seed=1):
    """Bases of length one over C in float32."""
    return torch.nn.functional.normalize(torch.randn(sizes, generator=torch.Generator().manual_seed(seed)), dim=-2)


def gradients(function, x, bases, grad_y, grad_bases, dtype, **options):
    """Of x and, where one flows, of the bases, with everything in `dtype`; None keeps what is given."""

    def cast(tensor):
        return tensor if dtype is None or not torch.is_tensor(tensor) else tensor.to(dtype)

    x, bases = (cast(tensor.detach()).requires_grad_() for tensor in (x, bases))
    options = {name: cast(value) for name, value in options.items()}
    y, last = function(x, bases, **options)
    loss = (y * grad_y.to(y.dtype)).sum()
    if grad_bases is not None:
        loss = loss + (last * grad_bases.to(last.dtype)).sum()
    return torch.autograd.grad(loss, (x, bases), allow_unused=True)


def assert_gradients(x, bases, *, grad_bases=True, grad_seed=2, **options):
    """Judge the gradients of `em_attention` on Triton by the rule, and return them."""
    generator = torch.Generator().manual_seed(grad_seed)
    grad_y = torch.randn(x.shape, generator=generator).to(x.dtype)
    sizes = (*x.shape[:-2], x.shape[-1], bases.shape[-1])
    grad_bases = torch.randn(sizes, generator=generator) if grad_bases else None
    arguments = x, bases, grad_y, grad_bases
    ours = gradients(ema_ops.em_attention, *arguments, None, backend="triton", **options)
    exact = gradients(reference.em_attention, *arguments, torch.float64, **options)
    plain = gradients(reference.em_attention, *arguments, x.dtype, **options)
    for name, actual, expected, yardstick in zip(("grad_x", "grad_bases"), ours, exact, plain, strict=True):
        assert (actual is None) == (expected is None)
        if actual is not None:
            assert_close_to_reference(actual, expected, yardstick, factor=3.0, name=name)
    assert ours[0].dtype == x.dtype
    return ours


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dtypes_and_memory_orders(dtype, layout):
    sizes = (1, 2, 37, 19) if layout == "heads inside" else (2, 37, 19)
    bases = make_bases(2, 19, 7) if layout == "heads inside" else make_bases(19, 7)
    assert_gradients(make_features(sizes, dtype, layout), bases, num_iters=2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_aligned_image_of_several_splits(dtype):
    assert_gradients(make_features((1, 200, 64), dtype, "image"), make_bases(1, 64, 16), num_iters=2)


@pytest.mark.parametrize("grad_iters", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_through_the_last_iterations(grad_iters, dtype):
    x, bases = make_features((1, 40, 12), dtype), make_bases(12, 5)
    _, grad_bases = assert_gradients(x, bases, num_iters=4, grad_iters=grad_iters, scale=1.7)
    assert (grad_bases is None) == (grad_iters < 4)


@pytest.mark.parametrize("eps_mode", ["add", "max"])
@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.3, 3.0])
def test_eps(eps, eps_mode):
    x, bases = make_features((1, 33, 16), torch.float32), make_bases(16, 6)
    assert_gradients(x, bases, num_iters=2, eps=eps, eps_mode=eps_mode)


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights(dtype):
    weight = torch.rand(2, 45, generator=torch.Generator().manual_seed(3))
    assert_gradients(make_features((2, 45, 24), dtype, "image"), make_bases(24, 9), weight=weight, num_iters=2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_bases", [9, 70])
def test_weights_of_any_size(num_bases, dtype):
    """Only their ratios matter without eps: a power of two in all weights changes no bit."""
    x, bases = make_features((2, 45, 24), dtype), make_bases(24, num_bases)
    weight = torch.rand(2, 45, generator=torch.Generator().manual_seed(3))
    results = []
    for size in (1.0, 2.0**-40, 2.0**40):
        leaves = x.clone().requires_grad_(), bases.clone().requires_grad_()
        y, last = ema_ops.em_attention(*leaves, weight=weight * size, eps=0.0, backend="triton")
        results.append((y, last, *torch.autograd.grad(y.float().square().sum() + last.sum(), leaves)))
    for expected, small, large in zip(*results, strict=True):
        assert torch.equal(small, expected)
        assert torch.equal(large, expected)


def test_mask_of_every_head():
    mask = torch.rand(1, 2, 41, generator=torch.Generator().manual_seed(4)) > 0.4
    x, bases = make_features((1, 2, 41, 16), torch.float32), make_bases(2, 16, 5)
    assert_gradients(x, bases, weight=mask.float(), num_iters=2)


@pytest.mark.parametrize(("channels", "num_bases", "dtype"), [(1024, 33, torch.float32), (140, 256, torch.bfloat16)])
def test_more_channels_and_bases_than_registers_hold(channels, num_bases, dtype):
    x, bases = make_features((1, 5, channels), dtype), make_bases(channels, num_bases)
    assert_gradients(x, bases, num_iters=2, scale=0.2)


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(1, 2),
    positions=st.integers(1, 40),
    channels=st.integers(1, 70),
    num_bases=st.integers(1, 20),
    num_iters=st.integers(1, 2),
    layout=st.sampled_from(["rows", "image", "slice"]),
    seed=st.integers(0, 99),
)
def test_any_small_shape(batch, positions, channels, num_bases, num_iters, layout, seed):
    x = make_features((batch, positions, channels), torch.float32, layout, seed)
    assert_gradients(x, make_bases(channels, num_bases, seed=seed + 1), num_iters=num_iters)


def test_gradient_of_a_sum_has_stride_0():
    x, bases = make_features((2, 35, 20), torch.float32).requires_grad_(), make_bases(20, 6).requires_grad_()
    y, last = ema_ops.em_attention(x, bases, backend="triton")
    expanded = torch.autograd.grad(y.sum() + last.sum(), (x, bases), retain_graph=True)
    dense = torch.autograd.grad((y, last), (x, bases), (torch.ones_like(y), torch.ones_like(last)))
    for with_stride_0, written_out in zip(expanded, dense, strict=True):
        assert torch.equal(with_stride_0, written_out)


@pytest.mark.parametrize("only", [0, 1])
def test_gradient_of_one_of_the_two_results(only):
    x, bases = make_features((1, 30, 12), torch.float32).requires_grad_(), make_bases(12, 4).requires_grad_()
    ours = torch.autograd.grad(ema_ops.em_attention(x, bases, backend="triton")[only].square().sum(), (x, bases))
    plain = torch.autograd.grad(reference.em_attention(x, bases)[only].square().sum(), (x, bases))
    x64, bases64 = (tensor.detach().double().requires_grad_() for tensor in (x, bases))
    exact = torch.autograd.grad(reference.em_attention(x64, bases64)[only].square().sum(), (x64, bases64))
    for name, actual, expected, yardstick in zip(("grad_x", "grad_bases"), ours, exact, plain, strict=True):
        assert_close_to_reference(actual, expected, yardstick, factor=3.0, name=name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_a_dead_base_leaves_the_gradient_finite(dtype, eps):
    x, bases = make_features((1, 34, 16), dtype).abs(), make_bases(16, 5).abs()
    bases[:, 2] = -1e4
    x_leaf, bases_leaf = x.clone().requires_grad_(), bases.clone().requires_grad_()
    *_, mass, length = torch.ops.ema_ops.em_forward(
        x[:, None], bases[None], None, False, "BHNC", 3, 3, 1.0, eps, "add", "triton"
    )
    assert mass[0, 0, 0, 2] == 0
    assert length[0, 0, 0, 2] == 0
    y, last = ema_ops.em_attention(x_leaf, bases_leaf, eps=eps, backend="triton")
    for grad in torch.autograd.grad((y.float().square().sum() + last.sum()), (x_leaf, bases_leaf)):
        assert grad.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_to_see_leaves_the_gradient_finite(dtype):
    x, bases = make_features((2, 34, 16), dtype), make_bases(16, 5)
    for features, weight in ((torch.zeros_like(x), None), (x, torch.zeros(2, 34))):
        leaf, bases_leaf = features.clone().requires_grad_(), bases.clone().requires_grad_()
        y, last = ema_ops.em_attention(leaf, bases_leaf, weight=weight, backend="triton")
        loss = y.float().sum() + last.sum()
        for grad in torch.autograd.grad(loss, (leaf, bases_leaf)):
            assert grad.isfinite().all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_stays_in_its_image(dtype):
    clean, bases = make_features((3, 33, 24), dtype, "image"), make_bases(3, 24, 4)
    dirty = clean.clone()
    dirty[1] = float("nan")
    grads = []
    for features in (clean, dirty):
        leaf, bases_leaf = features.clone().requires_grad_(), bases.clone().requires_grad_()
        y, last = ema_ops.em_attention(leaf, bases_leaf, num_iters=2, backend="triton")
        grads.append(torch.autograd.grad(y[::2].sum() + last[::2].sum(), (leaf, bases_leaf)))
    for of_clean, of_dirty in zip(*grads, strict=True):
        assert torch.equal(of_clean[::2], of_dirty[::2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_call_same_bits(dtype):
    x, bases = make_features((1, 130, 24), dtype), make_bases(24, 7)
    first, second = (assert_gradients(x, bases, num_iters=2) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("layout", ["rows", "image", "heads inside"])
def test_gradient_has_the_memory_order_of_the_features(layout):
    sizes = (2, 2, 20, 8) if layout == "heads inside" else (2, 20, 8)
    bases = make_bases(2, 8, 3) if layout == "heads inside" else make_bases(8, 3)
    x = make_features(sizes, torch.float32, layout).requires_grad_()
    y, _ = ema_ops.em_attention(x, bases, num_iters=1, backend="triton")
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert grad.stride() == x.stride()
