"""Features of which no boxes can be copied: the loop copies them to aligned rows, and results have any rows."""

from __future__ import annotations

import pytest
import torch
from backend_checks import assert_same_bits, check, make_bases, make_features, normal, run_loop, uniform
from emulated import EmulatedBackend, installed

from ema_ops import em_attention, em_step


@pytest.fixture
def copying(core):
    """The backend of a device with two multiprocessors; every plan must copy features for csrc/hopper."""

    def look(plan):
        assert plan.copies
        assert plan.iteration.hopper
        assert plan.reconstruction.hopper

    backend = EmulatedBackend(core, 2, hopper=True)
    backend.change_plan = look
    with installed(backend):
        yield backend


@pytest.mark.parametrize("positions", [1, 63, 65, 66, 68, 129])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_images_of_any_size(copying, dtype, positions):
    inputs = {"x": make_features((2, 2, positions, 72), dtype, "image"), "bases": make_bases(2, 72, 9)}
    grads = normal(*inputs["x"].shape, seed=6, dtype=dtype), normal(2, 2, 72, 9, seed=5)
    check("attention", inputs, grads, "cuda", num_iters=2, weight=uniform(2, 2, positions, seed=4))


@pytest.mark.parametrize("layout", ["rows", "heads inside", "slice"])
@pytest.mark.parametrize("channels", [1, 61, 132])
def test_rows_of_any_length(copying, channels, layout):
    inputs = {"x": make_features((2, 2, 70, channels), torch.bfloat16, layout), "bases": make_bases(2, channels, 33)}
    grads = normal(*inputs["x"].shape, seed=6, dtype=torch.bfloat16), None
    check("attention", inputs, grads, "cuda", num_iters=2)


@pytest.mark.parametrize("layout", ["rows", "image"])
def test_expanded_features_and_gradients(core, layout):
    """Strides of 0 change no bit, neither of features nor of the gradient of y."""
    expanded = [make_features((1, 72, 72), torch.bfloat16, layout, seed).expand(2, 72, 72) for seed in (0, 6)]
    dense = [make_features((2, 72, 72), torch.bfloat16, layout).copy_(each) for each in expanded]
    plans, results = [], []
    backend = EmulatedBackend(core, 2, hopper=True)
    backend.change_plan = plans.append
    with installed(backend):
        for features, grad_y in (expanded, dense):
            features = features.detach().requires_grad_()
            y, last = em_attention(features, make_bases(72, 9), num_iters=2, backend="cuda")
            y.backward(grad_y)
            results.append((y, last, features.grad))
    assert_same_bits(*results)
    assert [plan.copies for plan in plans] == [True, True, False, False]


@pytest.mark.parametrize("layout", ["rows", "image"])
def test_an_image_of_nan_leaves_its_neighbours_alone(copying, layout):
    x, bases = make_features((3, 67, 67), torch.bfloat16, layout), make_bases(3, 67, 20)
    clean = run_loop(x, bases, "cuda", num_iters=2)
    x[1] = torch.nan
    spoiled = run_loop(x, bases, "cuda", num_iters=2)
    assert spoiled[0][1].isnan().all()
    for neighbour in (slice(1), slice(2, 3)):
        assert_same_bits(clean, spoiled, neighbour)


def test_what_is_not_copied(core):
    """Features that are read once, and those that kernels take as they are."""
    plans = []
    backend = EmulatedBackend(core, 2, hopper=True)
    backend.change_plan = plans.append
    odd, bases = make_features((1, 65, 72), torch.bfloat16, "image"), make_bases(72, 9)
    with installed(backend):
        em_attention(odd, bases, num_iters=1, backend="cuda")
        em_step(odd, bases, backend="cuda")
        em_attention(odd, make_bases(72, 65), num_iters=2, backend="cuda")
        em_attention(odd.float(), bases, num_iters=2, backend="cuda")
    assert len(plans) == 4
    assert not any(plan.copies or plan.iteration.hopper for plan in plans)
    plans.clear()
    with installed(backend):
        em_attention(make_features((1, 72, 72), torch.bfloat16, "image"), bases, num_iters=2, backend="cuda")
    assert [(plan.copies, plan.iteration.hopper) for plan in plans] == [(False, True)]
