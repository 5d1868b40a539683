"""What the two halves of the loop of every backend must do; see `loop_tests`."""

from __future__ import annotations

import pytest
import torch
from backend_checks import DTYPES, assert_same_bits, check, make_bases, make_features, normal, run, uniform
from folding_checks import check_folding
from judge import assert_close_to_reference
from loop_tests import dtypes, orders

import ema_ops
from ema_ops import reference
from ema_ops.backends import load
from ema_ops.problem import Problem


class PartsTests:
    """`em_step`, `em_reconstruct` and `responsibilities` with their gradients, and all that the loop returns."""

    @dtypes
    @orders
    @pytest.mark.parametrize(("channels", "num_bases"), [(21, 6), (64, 64), (200, 70)])
    def test_step(self, backend, channels, num_bases, layout, dtype):
        inputs = {
            "x": make_features((2, 70, channels), dtype, layout),
            "bases": make_bases(channels, num_bases),
            "logit_bias": normal(num_bases, seed=2),
        }
        grads = normal(2, channels, num_bases, seed=4), normal(2, num_bases, seed=5)
        check("step", inputs, grads, backend, weight=uniform(2, 70, seed=3), scale=1.5)

    @dtypes
    @orders
    def test_both_around_a_convolution(self, backend, layout, dtype):
        x, weight = make_features((2, 70, 40), dtype, layout), uniform(2, 70, seed=3)
        check_folding(x, 9, backend, num_iters=2, weight=weight, scale=1.5)

    @pytest.mark.parametrize("biased", [False, True])
    def test_step_of_heads(self, backend, biased):
        inputs = {"x": make_features((2, 2, 33, 16), torch.float32, "heads inside"), "bases": make_bases(2, 16, 5)}
        if biased:
            inputs |= {"bases": make_bases(2, 2, 16, 5), "logit_bias": normal(2, 2, 5, seed=2)}
        check("step", inputs, (normal(2, 2, 16, 5, seed=4), normal(2, 2, 5, seed=5)), backend)

    @dtypes
    @orders
    @pytest.mark.parametrize(("channels", "values", "num_bases"), [(21, 35, 6), (64, 200, 64), (130, 19, 100)])
    def test_reconstruct(self, backend, channels, values, num_bases, layout, dtype):
        inputs = {
            "x": make_features((2, 70, channels), dtype, layout),
            "logit_bases": make_bases(channels, num_bases),
            "value_bases": normal(2, values, num_bases, seed=2),
            "logit_bias": normal(2, num_bases, seed=3),
        }
        results = check("reconstruct", inputs, (normal(2, 70, values, seed=4, dtype=dtype),), backend, scale=0.5)
        assert (results["y"].stride(-1) == 1) == (layout == "rows")

    def test_reconstruct_of_many_channels_and_bases(self, backend):
        inputs = {"x": normal(1, 5, 130, seed=0), "logit_bases": normal(130, 65, seed=1) / 9}
        inputs["value_bases"] = normal(1000, 65, seed=2)
        check("reconstruct", inputs, (normal(1, 5, 1000, seed=4),), backend)

    def test_bases_of_any_strides_and_dtype(self, backend):
        x, bases = make_features((2, 45, 24), torch.float16), make_bases(24, 6)
        strided = bases.t().contiguous().t().expand(2, 24, 6)
        first, second = (ema_ops.em_step(x, given, backend=backend) for given in (bases, strided))
        assert_same_bits(first, second)
        half = bases.half()
        first, second = (ema_ops.em_reconstruct(x, given, given, backend=backend) for given in (half.float(), half))
        assert torch.equal(first, second)

    @dtypes
    def test_responsibilities(self, backend, dtype):
        x, bases = make_features((2, 3, 30, 24), dtype), make_bases(3, 24, 6)
        z = ema_ops.responsibilities(x, bases, scale=2.0, backend=backend)
        plain = reference.e_step(x, bases.to(dtype), 2.0)
        assert_close_to_reference(z, reference.e_step(x.double(), bases.double(), 2.0), plain, name="responsibilities")

    def test_a_gradient_of_responsibilities(self, backend):
        """Of stride 0, and of one base alone."""
        x, bases, grads = normal(1, 40, 12, seed=0), make_bases(12, 4), []
        for leaf, function, options in (
            (x.clone(), ema_ops.responsibilities, {"backend": backend}),
            (x.double(), reference.e_step, {}),
            (x.clone(), reference.e_step, {}),
        ):
            z = function(leaf.requires_grad_(), bases.to(leaf.dtype), **options)
            grads += torch.autograd.grad(z[..., 0].sum(), leaf)
        assert_close_to_reference(*grads, factor=3.0, name="grad_x")

    @dtypes
    def test_a_tiny_mass_and_a_huge_gradient_meet_in_range(self, backend, dtype):
        """A power of two goes through: from the weights to the results, and out of the gradients it is taken from."""
        inputs = {"x": make_features((1, 40, 12), dtype), "bases": make_bases(12, 4)}
        weight, grads = uniform(1, 40, seed=3) + 0.5, (normal(1, 12, 4, seed=4), normal(1, 4, seed=5))
        expected = run("step", inputs, grads, backend=backend, weight=weight)
        large = tuple(grad * 2.0**40 for grad in grads)
        actual = run("step", inputs, large, backend=backend, weight=weight * 2.0**-40)
        for name, value in actual.items():
            assert value.isfinite().all()
            assert torch.equal(value, expected[name] * (1.0 if name.startswith("gradient") else 2.0**-40)), name

    @orders
    @pytest.mark.parametrize("num_bases", [4, 70])
    @pytest.mark.filterwarnings("ignore::RuntimeWarning")
    def test_nan_stays_in_its_image(self, backend, num_bases, layout):
        clean, bases = make_features((2, 40, 12), torch.bfloat16, layout), make_bases(12, num_bases)
        dirty, grads = clean.clone(), []
        dirty[1, 3] = float("nan")
        for features in (clean, dirty):
            leaf, bases_leaf = (
                features.clone().requires_grad_(),
                bases.expand(2, 12, num_bases).clone().requires_grad_(),
            )
            sums, mass = ema_ops.em_step(leaf, bases_leaf, backend=backend)
            y = ema_ops.em_reconstruct(leaf, bases_leaf, bases, backend=backend)
            loss = sums[0].square().sum() + mass[0].square().sum() + y[0].float().square().sum()
            grads.append(torch.autograd.grad(loss, (leaf, bases_leaf)))
        assert_same_bits(*grads, of=slice(1))

    @pytest.mark.parametrize("call", ["step", "reconstruct"])
    def test_same_call_same_bits(self, backend, call):
        inputs = {"x": normal(2, 130, 20, seed=0), "logit_bias": normal(6, seed=2)}
        if call == "step":
            inputs["bases"], grads = make_bases(20, 6), (normal(2, 20, 6, seed=4), normal(2, 6, seed=5))
        else:
            inputs |= {"logit_bases": make_bases(20, 6), "value_bases": make_bases(33, 6)}
            grads = (normal(2, 130, 33, seed=4),)
        first, second = (run(call, inputs, grads, backend=backend).values() for _ in range(2))
        assert_same_bits(first, second)

    @pytest.mark.parametrize(("channels", "num_bases", "dtype"), [
        *((24, 6, dtype) for dtype in DTYPES), *((600, 70, dtype) for dtype in DTYPES), (1000, 33, "bf16"),
    ])  # fmt: skip
    def test_everything_the_loop_returns(self, backend, channels, num_bases, dtype):
        """Against the torch backend in float64: the path of the bases, masses and lengths."""
        dtype = DTYPES[dtype]
        x, bases = make_features((2, 2, 40, channels), dtype), make_bases(2, channels, num_bases)
        weight = uniform(2, 2, 40, seed=1)

        def results(name, x, bases, weight):
            problem = Problem.build(x, bases, weight=weight, num_iters=2, grad_iters=2, eps=1e-6)
            return load(name).em_forward(problem, x, bases.expand(2, *bases.shape), weight)

        ours = results(backend, x, bases, weight)
        expected = results("torch", x.double(), bases.double(), weight.double())
        plain = rounded_loop(x, bases.to(dtype), weight.to(dtype))
        names = "y", "bases", "path", "mass", "length"
        for name, result, target, rounded in zip(names, ours, expected, plain, strict=True):
            assert result.dtype == (dtype if name == "y" else torch.float32)
            assert name == "y" or result.is_contiguous()
            assert_close_to_reference(result, target, rounded, name=name)


def rounded_loop(x, bases, weight):
    """Two iterations in the dtype of x, keeping what happens on the way."""
    path, masses, lengths = [bases.expand(2, *bases.shape)], [], []
    for _ in range(2):
        z = reference.e_step(x, path[-1])
        sums, mass = reference.weighted_sums(x, z, weight)
        masses.append(mass)
        lengths.append((sums / (mass + 1e-6).unsqueeze(-2)).norm(dim=-2))
        path.append(reference.normalize(sums, mass))
    *path, last = path
    return z @ last.transpose(-1, -2), last, torch.stack(path), torch.stack(masses), torch.stack(lengths)
