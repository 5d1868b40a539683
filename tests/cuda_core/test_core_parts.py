"""The two halves of the loop and their gradients on the CPU against float64, and all that the loop returns."""

from __future__ import annotations

import pytest
import torch
from checks import DTYPES, make_bases, make_features
from judge import assert_close_to_reference

import ema_ops
from ema_ops import reference
from ema_ops.backends import load
from ema_ops.problem import Problem

pytestmark = pytest.mark.usefixtures("emulated")
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
layouts = pytest.mark.parametrize("layout", ["rows", "image"])


def normal(*sizes, seed, dtype=torch.float32):
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed)).to(dtype)


def reference_step(x, bases, *, logit_bias=None, weight=None, scale=1.0):
    return reference.weighted_sums(x, reference.e_step(x, bases, scale, logit_bias), weight)


def reference_reconstruct(x, logit_bases, value_bases, *, logit_bias=None, scale=1.0):
    return (reference.e_step(x, logit_bases, scale, logit_bias) @ value_bases.transpose(-1, -2),)


IN_PYTORCH = {"step": reference_step, "reconstruct": reference_reconstruct}


def run(function, inputs, grads, dtype, **options):
    """Results, and the gradient of every tensor in `inputs`, with everything in `dtype`; None keeps what is given."""
    inputs = {
        name: (tensor.detach() if dtype is None else tensor.detach().to(dtype)).requires_grad_()
        for name, tensor in inputs.items()
    }
    if dtype is not None:
        options = {name: value.to(dtype) if torch.is_tensor(value) else value for name, value in options.items()}
    results = function(**inputs, **options)
    results = (results,) if torch.is_tensor(results) else results
    loss = sum((result * grad.to(result.dtype)).sum() for result, grad in zip(results, grads, strict=True))
    return results, dict(zip(inputs, torch.autograd.grad(loss, list(inputs.values())), strict=True))


def check(name, inputs, grads, **options):
    """Judge `ema_ops.em_<name>` and its gradients."""
    results, ours = run(getattr(ema_ops, f"em_{name}"), inputs, grads, None, backend="cuda", **options)
    exact_results, exact = run(IN_PYTORCH[name], inputs, grads, torch.float64, **options)
    plain_results, plain = run(IN_PYTORCH[name], inputs, grads, inputs["x"].dtype, **options)
    for i, trio in enumerate(zip(results, exact_results, plain_results, strict=True)):
        assert_close_to_reference(*trio, name=f"result {i}")
    for key, actual in ours.items():
        assert actual.dtype == inputs[key].dtype
        assert_close_to_reference(actual, exact[key], plain[key], factor=3.0, name=f"gradient of {key}")


@dtypes
@layouts
@pytest.mark.parametrize(("channels", "num_bases"), [(21, 6), (64, 64), (200, 70)])
def test_step(channels, num_bases, layout, dtype):
    inputs = {
        "x": make_features((2, 70, channels), dtype, layout),
        "bases": make_bases(channels, num_bases),
        "logit_bias": normal(num_bases, seed=2),
    }
    weight = torch.rand(2, 70, generator=torch.Generator().manual_seed(3))
    grads = normal(2, channels, num_bases, seed=4), normal(2, num_bases, seed=5)
    check("step", inputs, grads, weight=weight, scale=1.5)


def test_step_of_heads_without_a_bias():
    inputs = {"x": make_features((2, 2, 33, 16), torch.float32, "heads inside"), "bases": make_bases(2, 16, 5)}
    check("step", inputs, (normal(2, 2, 16, 5, seed=4), normal(2, 2, 5, seed=5)))


@dtypes
@layouts
@pytest.mark.parametrize(("channels", "values", "num_bases"), [(21, 35, 6), (64, 200, 64), (130, 19, 100)])
def test_reconstruct(channels, values, num_bases, layout, dtype):
    inputs = {
        "x": make_features((2, 70, channels), dtype, layout),
        "logit_bases": make_bases(channels, num_bases),
        "value_bases": normal(2, values, num_bases, seed=2),
        "logit_bias": normal(2, num_bases, seed=3),
    }
    check("reconstruct", inputs, (normal(2, 70, values, seed=4, dtype=dtype),), scale=0.5)


def test_parts_take_bases_of_any_strides_and_dtype():
    x, bases = make_features((2, 45, 24), torch.float16), make_bases(24, 6)
    strided = bases.t().contiguous().t().expand(2, 24, 6)
    first = ema_ops.em_step(x, bases, backend="cuda")
    assert all(torch.equal(a, b) for a, b in zip(first, ema_ops.em_step(x, strided, backend="cuda"), strict=True))
    half = bases.half()
    first = ema_ops.em_reconstruct(x, half.float(), half.float(), backend="cuda")
    assert torch.equal(first, ema_ops.em_reconstruct(x, half, half, backend="cuda"))


@dtypes
def test_responsibilities(dtype):
    x, bases = make_features((2, 3, 30, 24), dtype), make_bases(3, 24, 6)
    z = ema_ops.responsibilities(x, bases, scale=2.0, backend="cuda")
    plain = reference.e_step(x, bases.to(dtype), 2.0)
    assert_close_to_reference(z, reference.e_step(x.double(), bases.double(), 2.0), plain, name="responsibilities")


@dtypes
def test_a_tiny_mass_and_a_huge_gradient_meet_in_range(dtype):
    inputs = {"x": make_features((1, 40, 12), dtype), "bases": make_bases(12, 4)}
    weight = torch.rand(1, 40, generator=torch.Generator().manual_seed(3)) + 0.5
    grads = normal(1, 12, 4, seed=4), normal(1, 4, seed=5)
    _, expected = run(ema_ops.em_step, inputs, grads, None, backend="cuda", weight=weight)
    large = tuple(grad * 2.0**40 for grad in grads)
    _, actual = run(ema_ops.em_step, inputs, large, None, backend="cuda", weight=weight * 2.0**-40)
    for name, value in actual.items():
        assert value.isfinite().all()
        assert torch.equal(value, expected[name])


@layouts
@pytest.mark.parametrize("num_bases", [4, 70])
def test_nan_stays_in_its_image(num_bases, layout):
    clean, bases = make_features((2, 40, 12), torch.bfloat16, layout), make_bases(12, num_bases)
    dirty = clean.clone(memory_format=torch.preserve_format)
    dirty[1, 3] = float("nan")
    grads = []
    for features in (clean, dirty):
        leaf, bases_leaf = features.clone().requires_grad_(), bases.expand(2, 12, num_bases).clone().requires_grad_()
        sums, mass = ema_ops.em_step(leaf, bases_leaf, backend="cuda")
        y = ema_ops.em_reconstruct(leaf, bases_leaf, bases, backend="cuda")
        loss = sums[0].square().sum() + mass[0].square().sum() + y[0].float().square().sum()
        grads.append(torch.autograd.grad(loss, (leaf, bases_leaf)))
    for of_clean, of_dirty in zip(*grads, strict=True):
        assert torch.equal(of_clean[0], of_dirty[0])


@dtypes
@pytest.mark.parametrize(("channels", "num_bases"), [(24, 6), (600, 70)])
def test_everything_the_loop_returns(dtype, channels, num_bases):
    """Against the torch backend in float64: the path of the bases, masses and lengths."""
    x, bases = make_features((2, 2, 40, channels), dtype), make_bases(2, channels, num_bases)
    weight = torch.rand(2, 2, 40, generator=torch.Generator().manual_seed(1))

    def results(name, x, bases, weight):
        options = {"num_iters": 2, "grad_iters": 2, "eps": 1e-6}
        problem = Problem.build(x, bases, weight=weight, **options)
        return load(name).em_forward(problem, x, bases.expand(2, *bases.shape), weight)

    ours = results("cuda", x, bases, weight)
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
