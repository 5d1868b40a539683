"""What this backend promises beyond the results: any order of blocks, its own workspace, and every way to launch."""

from __future__ import annotations

import pytest
import torch
from backend_checks import assert_same_bits, check_loop, make_bases, make_features, run_loop
from emulated import DEVICES
from loop_tests import dtypes, either_plan, orders

import ema_ops


@dtypes
@either_plan
@orders
def test_same_call_same_bits_in_any_order_of_blocks(emulated, monkeypatch, layout, num_bases, dtype):
    x, bases = make_features((2, 200, 70), dtype, layout), make_bases(2, 70, num_bases)
    first = run_loop(x, bases, "cuda", num_iters=2)
    for order in ("reverse", "shuffled"):
        monkeypatch.setenv("EMA_SIMT_ORDER", order)
        assert_same_bits(first, run_loop(x, bases, "cuda", num_iters=2))


class GuardedCore:
    """The module, but that calls get workspaces with a guard behind their end."""

    def __init__(self, core):
        self.core, self.workspaces = core, []

    def __getattr__(self, name):
        found = getattr(self.core, name)
        if not name.startswith("em_") or name.endswith("_bytes"):
            return found

        def launch(problem, plan, place, *arguments):
            size = getattr(self.core, f"{name}_bytes")(problem, plan)
            self.workspaces.append((torch.full((size + 4096,), 255, dtype=torch.uint8), size))
            found(problem, plan, (*place[:2], self.workspaces[-1][0].data_ptr()), *arguments)

        return launch


@dtypes
@pytest.mark.parametrize("weighted", [False, True])
@either_plan
def test_the_workspace_is_as_large_as_it_says(emulated, monkeypatch, num_bases, weighted, dtype):
    x, bases = make_features((2, 70, 40), dtype), make_bases(40, num_bases)
    guarded = GuardedCore(emulated.core)
    monkeypatch.setattr(emulated, "core", guarded)
    weight = torch.ones(2, 70) if weighted else None
    run_loop(x, bases, "cuda", weight=weight)
    ema_ops.em_attention(x, bases, weight=weight, backend="cuda")
    assert len(guarded.workspaces) == 3
    for memory, size in guarded.workspaces:
        assert (memory[size:] == 255).all()
        # the last piece is used
        assert (memory[size - 1024 : size] != 255).any()


def test_tf32_may_change_between_two_calls(emulated, monkeypatch):
    heard = []

    class Listening(GuardedCore):
        def em_attend(self, problem, *_):
            heard.append(problem.tf32)

    monkeypatch.setattr(emulated, "core", Listening(emulated.core))
    x, bases = make_features((1, 40, 16), torch.float32), make_bases(16, 5)
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        for precision in ("tf32", "ieee", "tf32"):
            matmul.fp32_precision = precision
            ema_ops.em_attention(x, bases, backend="cuda")
    finally:
        matmul.fp32_precision = before
    assert heard == [True, False, True]


@pytest.mark.parametrize("num_bases", [9, 70])
@pytest.mark.parametrize("weighted", [False, True])
def test_what_is_kept_for_backward(emulated, num_bases, weighted):
    """Beyond x, the weight and y: T + 1 bases in float32, masses and lengths."""
    batch, channels, num_iters, seen = 2, 40, 3, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    x, bases = make_features((batch, 70, channels), torch.bfloat16).requires_grad_(), make_bases(channels, num_bases)
    weight = torch.ones(batch, 70) if weighted else None
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y, _ = ema_ops.em_attention(x, bases, num_iters=num_iters, weight=weight, backend="cuda")
    for given in (x, y) if weight is None else (x, y, weight):
        seen.pop(given.untyped_storage().data_ptr(), None)
    assert sum(seen.values()) == 4 * batch * num_bases * ((num_iters + 1) * channels + 2 * num_iters)


E_STEPS = ("e_step", "iteration", "gradient", "first_gradient", "last_gradient", "value_gradient")


def use_splits(splits):
    """Every kernel with so many splits."""

    def change(plan):
        for name in (*E_STEPS, "m_step", "value_m_step"):
            getattr(plan, name).splits = splits

    return change


def use_slots(slots):
    """Every pipeline with so many slots, and nothing fused."""

    def change(plan):
        for name in E_STEPS:
            e_step = getattr(plan, name)
            e_step.fused = e_step.rows_resident = False
            e_step.feature_slots = e_step.row_slots = slots
            e_step.shared_memory = 227 * 1024
        for m_step in (plan.m_step, plan.value_m_step):
            m_step.slots = min(slots, 3)
            m_step.shared_memory = 227 * 1024

    return change


PLANS = {
    "one split": use_splits(1),
    "three splits": use_splits(3),
    "more splits than tiles": use_splits(7),
    "one slot": use_slots(1),
    "two slots": use_slots(2),
    "four slots": use_slots(4),
}


@dtypes
@pytest.mark.parametrize("change", PLANS.values(), ids=PLANS)
def test_every_plan_gives_right_results(emulated, monkeypatch, change, dtype):
    monkeypatch.setattr(emulated, "change_plan", change)
    check_loop(make_features((1, 200, 136), dtype), make_bases(136, 20), "cuda", num_iters=2)


@dtypes
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("channels", "num_bases"), [(512, 64), (200, 130)])
def test_the_plan_of_every_device(emulated, monkeypatch, device, channels, num_bases, dtype):
    monkeypatch.setattr(emulated, "properties", (*DEVICES[device], False))
    check_loop(make_features((1, 70, channels), dtype), make_bases(channels, num_bases), "cuda", num_iters=2)


def test_a_failed_launch_names_kernel_shape_and_reason(emulated, monkeypatch):
    def too_much(plan):
        plan.m_step.shared_memory = 300 * 1024

    monkeypatch.setattr(emulated, "change_plan", too_much)
    x, bases = make_features((2, 70, 40), torch.bfloat16), make_bases(40, 70)
    shape = "B = 2, H = 1, N = 70, C = 40, Cv = 40, K = 70, bfloat16"
    with pytest.raises(RuntimeError, match=f"the launch of m_step failed for {shape}: invalid argument"):
        ema_ops.em_attention(x, bases, backend="cuda")
