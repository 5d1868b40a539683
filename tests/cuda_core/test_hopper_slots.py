"""Partial sums that nearly cancel between the blocks of an image, or of very unlike sizes: no digit is missed."""

from __future__ import annotations

import pytest
import torch
from backend_checks import DTYPES, check, loop_grads, make_bases, normal, run, uniform
from emulated import EmulatedBackend, installed

POSITIONS, CHANNELS, BASES = 450, 72, 20


@pytest.fixture(params=[1, 7])
def hopper(core, request):
    """Two multiprocessors; as many blocks of an image as asked for."""

    def split(plan):
        for step in (plan.iteration, plan.gradient, plan.reconstruct_gradient):
            assert step.hopper
            step.splits = request.param

    backend = EmulatedBackend(core, 2, hopper=True)
    backend.change_plan = split
    with installed(backend):
        yield backend


def make_features(kind, dtype, positions=POSITIONS):
    x = normal(1, positions, CHANNELS, seed=0)
    if kind == "opposite halves":
        x = 0.1 * (0.3 * x + normal(1, 1, CHANNELS, seed=7) * torch.linspace(-1, 1, positions).sign()[:, None])
    elif kind == "nearly hard":
        x *= 4
    elif kind == "an outlier":
        x = 0.01 * x
        x[..., 3] *= 1000
    return x.to(dtype)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", ["opposite halves", "nearly hard", "an outlier"])
def test_sums(hopper, kind, dtype):
    inputs = {"x": make_features(kind, DTYPES[dtype]), "bases": make_bases(1, CHANNELS, BASES)}
    grads = normal(1, CHANNELS, BASES, seed=5), normal(1, BASES, seed=6)
    check("step", inputs, grads, "cuda", weight=uniform(1, POSITIONS, seed=4))


@pytest.mark.parametrize("kind", ["opposite halves", "an outlier"])
def test_the_loop(hopper, kind):
    inputs = {"x": make_features(kind, torch.bfloat16), "bases": make_bases(1, CHANNELS, BASES)}
    check("attention", inputs, loop_grads(**inputs), "cuda", num_iters=2)


@pytest.mark.parametrize("special", [torch.nan, torch.inf])
def test_images_do_not_meet(hopper, special):
    x, bases = make_features("nearly hard", torch.bfloat16).repeat(3, 1, 1), make_bases(CHANNELS, BASES)
    clean = run("step", {"x": x, "bases": bases}, None, backend="cuda")
    x[1, 400, 9] = special
    results = run("step", {"x": x, "bases": bases}, None, backend="cuda")
    for name, result in results.items():
        assert not result[1].isfinite().any(), name
        assert torch.equal(result[::2], clean[name][::2]), name
