"""The loop and its gradient, executed on the CPU, against float64."""

from __future__ import annotations

import pytest
import torch
from checks import DTYPES, LAYOUTS, check, check_forward, make_bases, make_features, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ema_ops
from ema_ops.backends import cuda

pytestmark = pytest.mark.usefixtures("emulated")
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


@dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dtypes_and_memory_orders(dtype, layout):
    sizes = (1, 2, 97, 19) if layout == "heads inside" else (2, 97, 19)
    bases = make_bases(2, 19, 7) if layout == "heads inside" else make_bases(19, 7)
    x = make_features(sizes, dtype, layout)
    y, _, grad_x, _ = check(x, bases, num_iters=2)
    if layout != "slice":
        assert y.stride() == grad_x.stride() == x.stride()


# beside the sizes of the kernels' tiles, and on both sides of what is fused
@dtypes
@pytest.mark.parametrize("layout", ["rows", "image"])
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
def test_sizes(positions, channels, num_bases, layout, dtype):
    check(make_features((1, positions, channels), dtype, layout), make_bases(channels, num_bases), num_iters=2)


@dtypes
@pytest.mark.parametrize(("channels", "num_bases"), [(1, 1), (3, 1), (64, 7), (1, 16), (512, 64), (40, 200)])
def test_a_single_position(channels, num_bases, dtype):
    check_forward(make_features((2, 1, channels), dtype), make_bases(channels, num_bases))


@pytest.mark.parametrize(
    ("channels", "num_bases", "layout", "dtype"),
    [
        (512, 65, "rows", "bf16"),
        (512, 200, "image", "fp16"),
        (513, 64, "rows", "bf16"),
        (1024, 33, "image", "fp32"),
        (520, 256, "rows", "fp32"),
        (1024, 256, "image", "bf16"),
    ],
)
def test_large_channels_and_bases(channels, num_bases, layout, dtype):
    x = make_features((1, 33, channels), DTYPES[dtype], layout)
    check(x, make_bases(channels, num_bases), num_iters=2, scale=0.2)


@dtypes
@pytest.mark.parametrize("layout", ["rows", "image"])
def test_a_picture_of_many_tiles(layout, dtype):
    check(make_features((1, 65 * 65, 3), dtype, layout), make_bases(3, 5), num_iters=2)


@dtypes
@pytest.mark.parametrize("shape", [(2, 50), (1, 50), (50,), (2, 1), ()], ids=str)
def test_weight(shape, dtype):
    weight = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    check(make_features((2, 50, 20), dtype), make_bases(20, 6), weight=weight, num_iters=2)


@dtypes
def test_weight_of_stored_responsibilities(dtype):
    weight = torch.rand(2, 70, generator=torch.Generator().manual_seed(1))
    check(make_features((2, 70, 24), dtype, "image"), make_bases(24, 66), weight=weight, num_iters=2)


@dtypes
@pytest.mark.parametrize("num_bases", [6, 70])
def test_weights_of_any_size(num_bases, dtype):
    """Only their ratios matter without eps: a power of two in all weights changes no bit."""
    x, bases = make_features((2, 70, 24), dtype), make_bases(24, num_bases)
    weight = torch.rand(2, 70, generator=torch.Generator().manual_seed(1))
    grads = make_features(x.shape, dtype, seed=3), make_features((2, 24, num_bases), torch.float32, seed=4)
    of_size = {
        size: run(ema_ops.em_attention, x, bases, *grads, None, weight=weight * size, eps=0.0, backend="cuda")
        for size in (1.0, 2.0**-40, 2.0**40)
    }
    for small, expected, large in zip(of_size[2.0**-40], of_size[1.0], of_size[2.0**40], strict=True):
        assert torch.equal(small, expected)
        assert torch.equal(large, expected)


def test_mask_of_every_head():
    mask = torch.rand(1, 2, 41, generator=torch.Generator().manual_seed(4)) > 0.4
    x, bases = make_features((1, 2, 41, 16), torch.float32), make_bases(2, 16, 5)
    check(x, bases, weight=mask.float(), num_iters=2)


@pytest.mark.parametrize("grad_iters", [1, 2, 3, 4])
@dtypes
def test_gradient_through_the_last_iterations(grad_iters, dtype):
    x, bases = make_features((1, 70, 12), dtype), make_bases(12, 5)
    *_, grad_bases = check(x, bases, num_iters=4, grad_iters=grad_iters, scale=1.7)
    assert (grad_bases is None) == (grad_iters < 4)


@pytest.mark.parametrize("eps_mode", ["add", "max"])
@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.3, 3.0])
def test_eps(eps, eps_mode):
    check(make_features((1, 40, 20), torch.float32), make_bases(20, 6), num_iters=2, eps=eps, eps_mode=eps_mode)


@pytest.mark.parametrize("scale", [-0.5, 0.0, 0.25, 3.0])
@dtypes
def test_scale(scale, dtype):
    check(make_features((1, 70, 20), dtype), make_bases(20, 6), num_iters=2, scale=scale)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, 3:40],
        lambda x: x[:, ::2, 1:30],
        lambda x: x[..., ::3],
        lambda x: x[:1].expand(3, -1, -1),
        lambda x: x[:, :1].expand(-1, 40, -1),
        lambda x: x[..., :1].expand(-1, -1, 20),
        lambda x: x.transpose(1, 2)[:, 2:34, 5:],
        lambda x: x.transpose(1, 2)[:, 1:34, ::2],
        lambda x: x.flip(1)[:, 1:17],
        lambda x: x[:, 5:6],
        lambda x: x[..., 7:8],
    ],
    ids=[
        "rows", "steps", "channel-steps", "one-image", "repeated-position", "repeated-channel", "transposed",
        "transposed-steps", "copied", "one-position", "one-channel",
    ],
)  # fmt: skip
def test_any_strides(view):
    x = view(make_features((2, 64, 48), torch.float16))
    check(x, make_bases(x.shape[-1], 6), num_iters=2)


@pytest.mark.parametrize("layout", ["rows", "image"])
@pytest.mark.parametrize("offset", [1, 2, 3, 4, 7])
@dtypes
def test_unaligned_memory(offset, layout, dtype):
    x = make_features((1, 64, 64), dtype, layout)
    memory = torch.zeros(offset + x.numel(), dtype=dtype)
    x = memory[offset:].as_strided(x.shape, x.stride(), offset).copy_(x)
    check_forward(x, make_bases(64, 6), num_iters=1)


def test_an_expanded_gradient():
    x, bases = make_features((2, 35, 20), torch.float32).requires_grad_(), make_bases(20, 6).requires_grad_()
    y, last = ema_ops.em_attention(x, bases, backend="cuda")
    expanded = torch.autograd.grad(y.sum() + last.sum(), (x, bases), retain_graph=True)
    written_out = torch.autograd.grad((y, last), (x, bases), (torch.ones_like(y), torch.ones_like(last)))
    assert all(torch.equal(a, b) for a, b in zip(expanded, written_out, strict=True))


@pytest.mark.parametrize("layout", ["rows", "image"])
def test_a_gradient_in_the_other_memory_order(layout):
    x, bases = make_features((2, 35, 20), torch.float32, layout).requires_grad_(), make_bases(20, 6)
    y, _ = ema_ops.em_attention(x, bases, backend="cuda")
    grad_y = make_features(y.shape, torch.float32, "image" if layout == "rows" else "rows", seed=5)
    same_order = torch.empty_strided(y.shape, y.stride()).copy_(grad_y)
    (first,) = torch.autograd.grad(y, x, grad_y, retain_graph=True)
    (second,) = torch.autograd.grad(y, x, same_order)
    assert torch.equal(first, second)


@dtypes
def test_no_gradient_for_the_returned_bases(dtype):
    check(make_features((2, 70, 20), dtype), make_bases(20, 6), num_iters=2, grad_bases=False)


@dtypes
@pytest.mark.parametrize("num_iters", [1, 3])
@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_a_dead_base_leaves_the_gradient_finite(dtype, num_iters, eps):
    x, bases = make_features((1, 34, 16), dtype).abs(), make_bases(16, 5).abs()
    bases[:, 2] = -1e4
    x.requires_grad_()
    bases.requires_grad_()
    y, last = ema_ops.em_attention(x, bases, num_iters=num_iters, eps=eps, backend="cuda")
    assert num_iters > 1 or not last[:, :, 2].any()
    for grad in torch.autograd.grad(y.float().square().sum() + last.sum(), (x, bases)):
        assert grad.isfinite().all()


@dtypes
def test_nothing_to_see(dtype):
    x, bases = make_features((2, 34, 16), dtype), make_bases(16, 5)
    for features, weight in ((torch.zeros_like(x), None), (x, torch.zeros(2, 34))):
        leaf, bases_leaf = features.clone().requires_grad_(), bases.clone().requires_grad_()
        y, last = ema_ops.em_attention(leaf, bases_leaf, weight=weight, backend="cuda")
        assert not last.any()
        for grad in torch.autograd.grad(y.float().sum() + last.sum(), (leaf, bases_leaf)):
            assert grad.isfinite().all()


def test_tf32_where_the_user_allows_it(monkeypatch):
    x, bases = make_features((1, 70, 40), torch.float32), make_bases(40, 9)
    exact, _ = check_forward(x, bases)
    monkeypatch.setattr(cuda, "tf32_allowed", lambda: True)
    rounded, _ = ema_ops.em_attention(x, bases, backend="cuda")
    error = (rounded - exact).norm() / exact.norm()
    assert 1e-5 < error < 2e-3


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 2),
    # with a few positions all bases coincide, and their gradient is rounding noise
    positions=st.integers(16, 150),
    channels=st.integers(1, 140),
    num_bases=st.integers(1, 80),
    num_iters=st.integers(1, 3),
    dtype=st.sampled_from(list(DTYPES.values())),
    layout=st.sampled_from(LAYOUTS),
    weighted=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape(batch, heads, positions, channels, num_bases, num_iters, dtype, layout, weighted, seed):
    x = make_features((batch, heads, positions, channels), dtype, layout, seed)
    weight = torch.rand(batch, heads, positions, generator=torch.Generator().manual_seed(seed)) if weighted else None
    bases = make_bases(heads, channels, num_bases, seed=seed + 1)
    check(x, bases, num_iters=num_iters, weight=weight, scale=0.7)
