"""The E-step of csrc/hopper with its M-step: every way to launch it, bases and positions that take no part."""

from __future__ import annotations

import pytest
import torch
from backend_checks import check, make_bases, make_features, normal, run, uniform
from emulated import EmulatedBackend, installed

OTHERS = 32 * 128 + 32 * 9 * 4 + 64 * 4 + 128  # bytes of shared memory beside the stages


@pytest.fixture
def hopper(core):
    """The backend of a device with two multiprocessors; every plan must serve iterations by csrc/hopper."""

    def look(plan):
        assert plan.iteration.hopper

    backend = EmulatedBackend(core, 2, hopper=True)
    backend.change_plan = look
    with installed(backend):
        yield backend


def make_inputs(layout, *, positions=400, channels=72, num_bases=33):
    return {
        "x": make_features((1, 2, positions, channels), torch.bfloat16, layout),
        "bases": make_bases(2, channels, num_bases),
        "logit_bias": normal(1, 2, num_bases, seed=2),
    }


@pytest.mark.parametrize("layout", ["rows", "image"])
@pytest.mark.parametrize("splits", [1, 3, 7])
def test_stages_change_no_bit(hopper, layout, splits):
    results = []
    for stages in (3, 5, 8):

        def change(plan, stages=stages):
            step = plan.iteration
            step.shared_memory = stages * (step.shared_memory - OTHERS) // step.feature_slots + OTHERS
            step.feature_slots, step.splits = stages, splits

        hopper.change_plan = change
        results.append(check("step", make_inputs(layout), None, "cuda", weight=uniform(1, 2, 400, seed=4)))
    for name, first in results[0].items():
        assert all(torch.equal(first, other[name]) for other in results[1:]), name


@pytest.mark.parametrize("layout", ["rows", "image"])
def test_a_base_that_is_excluded_gets_nothing(hopper, layout):
    inputs = make_inputs(layout, positions=72)
    inputs["logit_bias"][0, 1, 5] = -torch.inf
    results = check("step", inputs, None, "cuda")
    assert (results["sums"][0, 1, :, 5] == 0).all()
    assert results["mass"][0, 1, 5] == 0


@pytest.mark.parametrize("layout", ["rows", "image"])
def test_positions_of_weight_0_take_no_part(hopper, layout):
    inputs = make_inputs(layout, positions=136)
    weight = torch.ones(1, 2, 136)
    weight[..., 40:] = 0
    masked = run("step", inputs, None, backend="cuda", weight=weight)
    short = run("step", inputs | {"x": inputs["x"][..., :40, :]}, None, backend="cuda")
    for name, actual in masked.items():
        assert torch.equal(actual, short[name]), name
