"""`em_step`, `em_reconstruct` and `responsibilities` in the interpreter, and what else the backend returns."""

from __future__ import annotations

import pytest
import torch
from judge import assert_close_to_reference
from test_forward import dtypes, make

import ema_ops
from ema_ops import reference
from ema_ops.backends import load
from ema_ops.problem import Problem


def bias_for(shape, seed=2):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@dtypes
@pytest.mark.parametrize(
    ("channels", "num_bases", "bias_shape", "order"),
    [(40, 7, (7,), "BNC"), (200, 18, (2, 18), "BCN"), (300, 70, None, "BNC")],
)
def test_em_step(dtype, channels, num_bases, bias_shape, order):
    x, bases = make((2, 45, channels), num_bases, dtype, order)
    bias = None if bias_shape is None else bias_for(bias_shape)
    weight = torch.rand(2, 45, generator=torch.Generator().manual_seed(1))
    options = {"logit_bias": bias, "weight": weight, "scale": 0.7}

    def formula(dtype):
        z = reference.e_step(x.to(dtype), bases.to(dtype), 0.7, None if bias is None else bias.to(dtype))
        return reference.weighted_sums(x.to(dtype), z, weight.to(dtype))

    results = ema_ops.em_step(x, bases, backend="triton", **options)
    for name, ours, expected, plain in zip(
        ("sums", "mass"), results, formula(torch.float64), formula(dtype), strict=True
    ):
        assert ours.dtype == torch.float32
        assert_close_to_reference(ours, expected, plain, name=name)


@dtypes
@pytest.mark.parametrize(
    ("num_bases", "value_channels", "bias_shape", "order"),
    [(7, 33, (2, 7), "BNC"), (7, 33, None, "BCN"), (100, 300, None, "BNC")],
)
def test_em_reconstruct(dtype, num_bases, value_channels, bias_shape, order):
    x, bases = make((2, 45, 50), num_bases, dtype, order)
    values = torch.randn(2, value_channels, num_bases, generator=torch.Generator().manual_seed(1))
    bias = None if bias_shape is None else bias_for(bias_shape)

    def formula(dtype):
        z = reference.e_step(x.to(dtype), bases.to(dtype), 1.0, None if bias is None else bias.to(dtype))
        return z @ values.to(dtype).transpose(-1, -2)

    y = ema_ops.em_reconstruct(x, bases, values, logit_bias=bias, backend="triton")
    assert y.dtype == dtype
    assert (y.stride(-1) == 1) == (order == "BNC")
    assert_close_to_reference(y, formula(torch.float64), formula(dtype), name="y")


def test_parts_take_bases_of_any_strides_and_dtype():
    x, bases = make((2, 45, 24), 6, torch.float16)
    strided = bases.t().contiguous().t().expand(2, 24, 6)
    first = ema_ops.em_step(x, bases, backend="triton")
    assert all(torch.equal(a, b) for a, b in zip(first, ema_ops.em_step(x, strided, backend="triton"), strict=True))
    half = bases.half()
    first = ema_ops.em_reconstruct(x, half.float(), half.float(), backend="triton")
    assert torch.equal(first, ema_ops.em_reconstruct(x, half, half, backend="triton"))


@dtypes
def test_responsibilities(dtype):
    x, bases = make((2, 3, 30, 24), 6, dtype)
    z = ema_ops.responsibilities(x, bases, scale=2.0, backend="triton")
    plain = reference.e_step(x, bases.to(dtype), 2.0)
    assert_close_to_reference(z, reference.e_step(x.double(), bases.double(), 2.0), plain, name="responsibilities")


@dtypes
@pytest.mark.parametrize(("channels", "num_bases"), [(24, 6), (1000, 33)])
def test_everything_the_loop_returns(dtype, channels, num_bases):
    """Against the torch backend in float64: the path of the bases, masses and lengths."""
    x, bases = make((2, 2, 40, channels), num_bases, dtype)
    weight = torch.rand(2, 2, 40, generator=torch.Generator().manual_seed(1))

    def results(name, x, bases, weight):
        options = {"num_iters": 2, "grad_iters": 2, "eps": 1e-6}
        problem = Problem.build(x, bases, weight=weight, **options)
        return load(name).em_forward(problem, x, bases.expand(2, *bases.shape), weight)

    ours = results("triton", x, bases, weight)
    expected = results("torch", x.double(), bases.double(), weight.double())
    plain = rounded_loop(x, bases.to(dtype), weight.to(dtype))
    for name, result, target, rounded in zip(
        ("y", "bases", "path", "mass", "length"), ours, expected, plain, strict=True
    ):
        assert result.dtype == (dtype if name == "y" else torch.float32)
        assert name == "y" or result.is_contiguous()
        assert_close_to_reference(result, target, rounded, name=name)


def rounded_loop(x, bases, weight):
    """The formula in the dtype of x, keeping what happens on the way."""
    path, masses, lengths = [bases.expand(2, *bases.shape)], [], []
    for _ in range(2):
        z = reference.e_step(x, path[-1])
        sums, mass = reference.weighted_sums(x, z, weight)
        masses.append(mass)
        lengths.append((sums / (mass + 1e-6).unsqueeze(-2)).norm(dim=-2))
        path.append(reference.normalize(sums, mass))
    *path, last = path
    return z @ last.transpose(-1, -2), last, torch.stack(path), torch.stack(masses), torch.stack(lengths)
