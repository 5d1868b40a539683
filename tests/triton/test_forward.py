"""The whole loop in the interpreter against float64, by the error rule of `judge`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from judge import assert_close_to_reference

import ema_ops
from ema_ops import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16", "fp16"])
orders = pytest.mark.parametrize("order", ["BNC", "BCN"])


def make(shape, num_bases, dtype, order="BNC", seed=0):
    """Normal features [.., N, C] in a memory order, and unit bases [.., C, K] in float32 without the batch."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    x = x.transpose(-1, -2).contiguous().transpose(-1, -2) if order == "BCN" else x
    bases = torch.randn(*shape[1:-2], shape[-1], num_bases, generator=generator)
    return x.to(dtype), torch.nn.functional.normalize(bases, dim=-2)


def check(x, bases, *, weight=None, **options):
    """Run the loop and judge both results; returns them."""
    y, last = ema_ops.em_attention(x, bases, weight=weight, backend="triton", **options)
    expected = reference.em_attention(x.double(), bases.double(), weight=_to(weight, torch.float64), **options)
    plain = reference.em_attention(x, bases.to(x.dtype), weight=_to(weight, x.dtype), **options)
    assert y.dtype == x.dtype
    assert last.dtype == torch.float32
    for name, ours, theirs, rounded in zip(("y", "bases"), (y, last), expected, plain, strict=True):
        assert_close_to_reference(ours, theirs, rounded, name=name)
    return y, last


def _to(weight, dtype):
    return None if weight is None else weight.to(dtype)


@dtypes
@orders
def test_odd_sizes(dtype, order):
    x, bases = make((2, 97, 19), 7, dtype, order)
    y, _ = check(x, bases)
    assert y.stride() == x.stride()


@dtypes
@orders
def test_several_tiles_and_splits(dtype, order):
    x, bases = make((1, 200, 64), 8, dtype, order)
    y, _ = check(x, bases, num_iters=2, scale=1.5)
    assert y.stride() == x.stride()


@dtypes
def test_heads_inside_an_image(dtype):
    x, bases = make((2, 2, 33, 24), 5, dtype)
    inside = x.transpose(1, 2).contiguous().transpose(1, 2)
    y, last = check(inside, bases, num_iters=2)
    other, other_last = ema_ops.em_attention(x, bases, num_iters=2, backend="triton")
    assert torch.equal(y, other)
    assert torch.equal(last, other_last)


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
        lambda x: x.flip(1)[:, 1:17],
    ],
    ids=["rows", "steps", "channel-steps", "one-image", "one-position", "one-channel", "transposed", "copied"],
)
def test_any_strides(view):
    x, _ = make((2, 64, 48), 1, torch.float16)
    x = view(x)
    _, bases = make(x.shape, 6, x.dtype)
    check(x, bases, num_iters=2)


@pytest.mark.parametrize("shape", [(2, 50), (1, 50), (50,), (2, 1), ()], ids=str)
def test_weight(shape):
    x, bases = make((2, 50, 20), 6, torch.float16)
    weight = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    check(x, bases, weight=weight, num_iters=2)


@orders
def test_a_masked_position_adds_nothing(order):
    x, bases = make((2, 50, 20), 6, torch.bfloat16, order)
    mask = torch.arange(50) < torch.tensor([[50], [31]])
    y, last = check(x, bases, weight=mask)
    _, short = ema_ops.em_attention(x[1:, :31], bases, backend="triton")
    assert_close_to_reference(last[1:], short.double(), short)
    assert y.isfinite().all()


@pytest.mark.parametrize("eps_mode", ["add", "max"])
@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.5])
def test_eps(eps, eps_mode):
    x, bases = make((1, 40, 20), 6, torch.float32)
    check(x, bases, eps=eps, eps_mode=eps_mode)


@pytest.mark.parametrize(
    ("dtype", "eps"), [(torch.float32, 0.0), (torch.bfloat16, 1e-6), (torch.float16, 0.0)], ids=str
)
def test_nothing_to_average(dtype, eps):
    x, bases = make((2, 40, 20), 6, dtype)
    weight = torch.tensor([[0.0], [1.0]]).expand(2, 40)
    _, last = check(x, bases, weight=weight, eps=eps)
    assert not last[0].any()
    y, last = check(torch.zeros_like(x), bases, eps=eps)
    assert not y.any()
    assert not last.any()


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 64), (1, 5, 1)], ids=str)
@pytest.mark.parametrize("num_bases", [1, 16])
def test_smallest(shape, num_bases):
    check(*make(shape, num_bases, torch.float32))


@pytest.mark.parametrize(
    ("channels", "num_bases", "order"),
    [(1024, 32, "BNC"), (512, 64, "BCN"), (129, 256, "BNC"), (257, 130, "BCN"), (1024, 256, "BNC")],
    ids=str,
)
def test_large_channels_and_bases(channels, num_bases, order):
    x, bases = make((1, 40, channels), num_bases, torch.bfloat16, order)
    weight = torch.rand(1, 40, generator=torch.Generator().manual_seed(1))
    check(x, bases, weight=weight, num_iters=2)


@dtypes
def test_two_runs_are_bitwise_equal(dtype):
    x, bases = make((2, 150, 40), 9, dtype)
    first, second = (ema_ops.em_attention(x, bases, backend="triton") for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize(("channels", "num_bases", "order"), [(70, 9, "BNC"), (70, 9, "BCN"), (1000, 33, "BNC")])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_nan_in_one_image_leaves_the_others_alone(channels, num_bases, order):
    x, bases = make((3, 40, channels), num_bases, torch.bfloat16, order)
    clean = ema_ops.em_attention(x, bases, num_iters=2, backend="triton")
    x[1] = float("nan")
    spoiled = ema_ops.em_attention(x, bases, num_iters=2, backend="triton")
    for before, after in zip(clean, spoiled, strict=True):
        assert torch.equal(before[::2], after[::2])
        assert after[1].isnan().all()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    positions=st.integers(1, 70),
    channels=st.integers(1, 40),
    num_bases=st.integers(1, 20),
    num_iters=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
    order=st.sampled_from(["BNC", "BCN"]),
    weighted=st.booleans(),
    per_image=st.booleans(),
    scale=st.sampled_from([-0.5, 0.0, 1.0, 3.0]),
    seed=st.integers(0, 9),
)
def test_any_shape(batch, positions, channels, num_bases, num_iters, dtype, order, weighted, per_image, scale, seed):
    x, bases = make((batch, positions, channels), num_bases, dtype, order, seed)
    bases = bases * torch.linspace(0.5, 1, batch).view(-1, 1, 1) if per_image else bases
    weight = torch.rand(batch, positions, generator=torch.Generator().manual_seed(seed)) if weighted else None
    check(x, bases, weight=weight, num_iters=num_iters, scale=scale)
