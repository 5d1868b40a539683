"""The gradients of the step and of the reconstruction in the interpreter, against float64 automatic differentiation."""

from __future__ import annotations

import pytest
import torch
from judge import assert_close_to_reference

import ema_ops
from ema_ops import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def normal(*sizes, seed, dtype=torch.float32):
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed)).to(dtype)


def reference_step(x, bases, *, logit_bias=None, weight=None, scale=1.0):
    return reference.weighted_sums(x, reference.e_step(x, bases, scale, logit_bias), weight)


def reference_reconstruct(x, logit_bases, value_bases, *, logit_bias=None, scale=1.0):
    return (reference.e_step(x, logit_bases, scale, logit_bias) @ value_bases.transpose(-1, -2),)


def gradients(function, inputs, grads, dtype, **options):
    """Of every tensor in `inputs` (name: tensor), with everything in `dtype`; None keeps what is given."""
    inputs = {
        name: (tensor.detach() if dtype is None else tensor.detach().to(dtype)).requires_grad_()
        for name, tensor in inputs.items()
    }
    if dtype is not None:
        options = {name: value.to(dtype) if torch.is_tensor(value) else value for name, value in options.items()}
    results = function(**inputs, **options)
    results = (results,) if torch.is_tensor(results) else results
    loss = sum((result * grad.to(result.dtype)).sum() for result, grad in zip(results, grads, strict=True))
    return dict(zip(inputs, torch.autograd.grad(loss, list(inputs.values())), strict=True))


def assert_gradients(name, inputs, grads, **options):
    """Judge the gradients of `ema_ops.em_<name>` on Triton by the rule."""
    in_pytorch = {"step": reference_step, "reconstruct": reference_reconstruct}[name]
    dtype = inputs["x"].dtype
    ours = gradients(getattr(ema_ops, f"em_{name}"), inputs, grads, None, backend="triton", **options)
    exact = gradients(in_pytorch, inputs, grads, torch.float64, **options)
    plain = gradients(in_pytorch, inputs, grads, dtype, **options)
    for key, actual in ours.items():
        assert actual.dtype == inputs[key].dtype
        assert_close_to_reference(actual, exact[key], plain[key], factor=3.0, name=f"gradient of {key}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("image", [False, True])
def test_step(dtype, image):
    x = normal(2, 21, 45, seed=0, dtype=dtype).transpose(1, 2) if image else normal(2, 45, 21, seed=0, dtype=dtype)
    inputs = {"x": x, "bases": normal(21, 6, seed=1) / 4, "logit_bias": normal(6, seed=2)}
    weight = torch.rand(2, 45, generator=torch.Generator().manual_seed(3))
    grads = normal(2, 21, 6, seed=4), normal(2, 6, seed=5)
    assert_gradients("step", inputs, grads, weight=weight, scale=1.5)


def test_step_of_heads():
    inputs = {
        "x": normal(2, 33, 2, 16, seed=0).transpose(1, 2),
        "bases": normal(2, 2, 16, 5, seed=1) / 4,
        "logit_bias": normal(2, 2, 5, seed=2),
    }
    assert_gradients("step", inputs, (normal(2, 2, 16, 5, seed=4), normal(2, 2, 5, seed=5)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("image", [False, True])
def test_reconstruct(dtype, image):
    x = normal(2, 21, 45, seed=0, dtype=dtype).transpose(1, 2) if image else normal(2, 45, 21, seed=0, dtype=dtype)
    inputs = {
        "x": x,
        "logit_bases": normal(21, 6, seed=1) / 4,
        "value_bases": normal(2, 35, 6, seed=2),
        "logit_bias": normal(2, 6, seed=3),
    }
    assert_gradients("reconstruct", inputs, (normal(2, 45, 35, seed=4, dtype=dtype),), scale=0.5)


def test_reconstruct_of_more_channels_and_bases_than_registers_hold():
    inputs = {"x": normal(1, 5, 130, seed=0), "logit_bases": normal(130, 65, seed=1) / 9}
    inputs["value_bases"] = normal(1000, 65, seed=2)
    assert_gradients("reconstruct", inputs, (normal(1, 5, 1000, seed=4),))


def test_responsibilities_and_a_gradient_of_stride_0():
    x, bases = normal(1, 40, 12, seed=0), normal(12, 4, seed=1) / 3
    grads = []
    for leaf, function, options in (
        (x.clone(), ema_ops.responsibilities, {"backend": "triton"}),
        (x.double(), reference.e_step, {}),
        (x.clone(), reference.e_step, {}),
    ):
        z = function(leaf.requires_grad_(), bases.to(leaf.dtype), **options)
        grads += torch.autograd.grad(z[..., 0].sum(), leaf)
    assert_close_to_reference(*grads, factor=3.0, name="grad_x")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tiny_mass_and_a_huge_gradient_meet_in_range(dtype):
    x, bases = normal(1, 40, 12, seed=0, dtype=dtype), normal(12, 4, seed=1) / 3
    weight = torch.rand(1, 40, generator=torch.Generator().manual_seed(3)) + 0.5
    grads = normal(1, 12, 4, seed=4), normal(1, 4, seed=5)
    inputs = {"x": x, "bases": bases}
    expected = gradients(ema_ops.em_step, inputs, grads, None, backend="triton", weight=weight)
    large = tuple(grad * 2.0**40 for grad in grads)
    actual = gradients(ema_ops.em_step, inputs, large, None, backend="triton", weight=weight * 2.0**-40)
    for name, value in actual.items():
        assert value.isfinite().all()
        assert torch.equal(value, expected[name])


def test_same_call_same_bits():
    inputs = {"x": normal(2, 130, 20, seed=0), "bases": normal(20, 6, seed=1), "logit_bias": normal(6, seed=2)}
    grads = normal(2, 20, 6, seed=4), normal(2, 6, seed=5)
    first, second = (gradients(ema_ops.em_step, inputs, grads, None, backend="triton") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_nan_stays_in_its_image():
    clean, bases = normal(2, 40, 12, seed=0), normal(12, 4, seed=1)
    dirty = clean.clone()
    dirty[1, 3] = float("nan")
    grads = []
    for features in (clean, dirty):
        leaf, bases_leaf = features.clone().requires_grad_(), bases.expand(2, 12, 4).clone().requires_grad_()
        sums, mass = ema_ops.em_step(leaf, bases_leaf, backend="triton")
        y = ema_ops.em_reconstruct(leaf, bases_leaf, bases, backend="triton")
        loss = sums[0].square().sum() + mass[0].square().sum() + y[0].square().sum()
        grads.append(torch.autograd.grad(loss, (leaf, bases_leaf)))
    for of_clean, of_dirty in zip(*grads, strict=True):
        assert torch.equal(of_clean[0], of_dirty[0])
