"""Features of which no boxes can be copied: kernels read them as they are or a copy, and results have any rows."""

from __future__ import annotations

import pytest
import torch
from backend_checks import assert_same_bits, check, make_bases, make_features, normal, run_loop, uniform
from emulated import EmulatedBackend, installed

from ema_ops import em_attention, em_step


@pytest.fixture
def served(core):
    """The backend of a device with two multiprocessors; csrc/hopper must serve any rows, by a copy or without."""

    def look(plan):
        assert plan.copies != plan.any_rows
        assert plan.iteration.hopper
        assert plan.reconstruction.hopper

    backend = EmulatedBackend(core, 2, hopper=True)
    backend.change_plan = look
    with installed(backend):
        yield backend


@pytest.mark.parametrize("positions", [1, 7, 33, 63, 66, 68, 129])
def test_images_of_any_size(served, positions):
    dtype = torch.float16 if positions % 3 == 0 else torch.bfloat16
    inputs = {"x": make_features((2, 2, positions, 72), dtype, "image"), "bases": make_bases(2, 72, 9)}
    grads = normal(*inputs["x"].shape, seed=6, dtype=dtype), normal(2, 2, 72, 9, seed=5)
    check("attention", inputs, grads, "cuda", num_iters=2, weight=uniform(2, 2, positions, seed=4))


@pytest.mark.parametrize(("positions", "channels"), [(5, 72), (31, 67), (95, 264), (97, 131), (289, 40)])
def test_the_same_bits_as_with_boxes(served, positions, channels):
    """Rows at odd distances from an odd number on, of x and of the gradient of y, against rows that are aligned."""

    def stored(features, pad, begin):
        memory = torch.full((*features.shape[:-1], positions + pad), torch.nan, dtype=features.dtype)
        return memory[..., begin : begin + positions].copy_(features).transpose(-1, -2)

    x, grad_y = (normal(2, channels, positions, seed=seed, dtype=torch.bfloat16) for seed in (0, 6))
    results = []
    for pad, begin in ((-positions % 8, 0), (4 if positions % 2 else 5, 3)):
        features = stored(x, pad, begin).requires_grad_()
        y, last = em_attention(features, make_bases(channels, 9), num_iters=2, backend="cuda")
        y.backward(stored(grad_y, pad, begin))
        results.append((y, last, features.grad))
    assert_same_bits(*results)


@pytest.mark.parametrize("layout", ["rows", "heads inside", "slice"])
@pytest.mark.parametrize("channels", [1, 61, 132])
def test_rows_of_any_length(served, channels, layout):
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
    served = [plan.copies if layout == "rows" else plan.any_rows for plan in plans]
    assert served == [True, True, False, False]


@pytest.mark.parametrize("layout", ["rows", "image"])
def test_an_image_of_nan_leaves_its_neighbours_alone(served, layout):
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
    assert not any(plan.copies or plan.any_rows for plan in plans)
    assert [plan.iteration.hopper for plan in plans] == [True, True, False, False]
    plans.clear()
    with installed(backend):
        em_attention(make_features((1, 72, 72), torch.bfloat16, "image"), bases, num_iters=2, backend="cuda")
    assert [(plan.copies, plan.any_rows, plan.iteration.hopper) for plan in plans] == [(False, False, True)]
