"""What holds for the bits of a result: repeats, other images, memory nobody wrote, and every way to launch."""

from __future__ import annotations

import pytest
import torch
from checks import DTYPES, check, make_bases, make_features
from emulated import DEVICES

import ema_ops

dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
# fused and not
num_bases = pytest.mark.parametrize("num_bases", [9, 70])


def results(x, bases, weight=None, of=slice(None)):
    """y, the last bases and both gradients of a loss over the images `of`."""
    x, bases = x.clone(memory_format=torch.preserve_format).requires_grad_(), bases.clone().requires_grad_()
    y, last = ema_ops.em_attention(x, bases, weight=weight, num_iters=2, backend="cuda")
    loss = y[of].float().square().sum() + last[of].square().sum()
    return y.detach(), last.detach(), *torch.autograd.grad(loss, (x, bases))


def assert_same_bits(first, second, of=slice(None)):
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a[of], b[of])


@dtypes
@num_bases
@pytest.mark.parametrize("layout", ["rows", "image"])
def test_same_call_same_bits_in_any_order_of_blocks(emulated, monkeypatch, layout, num_bases, dtype):
    x, bases = make_features((2, 200, 70), dtype, layout), make_bases(2, 70, num_bases)
    first = results(x, bases)
    for order in ("forward", "reverse", "shuffled"):
        monkeypatch.setenv("EMA_SIMT_ORDER", order)
        assert_same_bits(first, results(x, bases))


@dtypes
@num_bases
@pytest.mark.parametrize("layout", ["rows", "image"])
def test_nan_stays_in_its_image(emulated, layout, num_bases, dtype):
    clean, bases = make_features((3, 67, 70), dtype, layout), make_bases(3, 70, num_bases)
    dirty = clean.clone(memory_format=torch.preserve_format)
    dirty[1] = float("nan")
    others = slice(None, None, 2)
    before, after = results(clean, bases, of=others), results(dirty, bases, of=others)
    assert_same_bits(before, after, of=others)
    assert after[0][1].isnan().all()
    assert after[1][1].isnan().all()


@num_bases
def test_a_masked_position_is_not_seen(emulated, num_bases):
    """Whatever is at a position of weight 0 leaves bases, and what the others get, alone."""
    x, bases = make_features((1, 90, 20), torch.bfloat16), make_bases(20, num_bases)
    mask = torch.arange(90) < 60
    other = x.clone()
    other[:, 60:] = 3.0
    (y, last), (other_y, other_last) = (
        ema_ops.em_attention(features, bases, weight=mask, backend="cuda") for features in (x, other)
    )
    assert torch.equal(last, other_last)
    assert torch.equal(y[:, :60], other_y[:, :60])


class GuardedCore:
    """The module, but that calls get workspaces with a guard behind their end."""

    def __init__(self, core):
        self.core, self.workspaces = core, []

    def __getattr__(self, name):
        found = getattr(self.core, name)
        if not name.endswith("_bytes"):
            return found

        def measured(problem, plan):
            size = found(problem, plan)
            self.workspaces.append((torch.full((size + 4096,), 255, dtype=torch.uint8), size))
            return size

        return measured

    def Place(self, device, stream, workspace):
        return self.core.Place(device, stream, self.workspaces[-1][0].data_ptr())


@dtypes
@pytest.mark.parametrize("weighted", [False, True])
@num_bases
def test_the_workspace_is_as_large_as_it_says(emulated, monkeypatch, num_bases, weighted, dtype):
    x, bases = make_features((2, 70, 40), dtype), make_bases(40, num_bases)
    guarded = GuardedCore(emulated.core)
    monkeypatch.setattr(emulated, "core", guarded)
    results(x, bases, torch.ones(2, 70) if weighted else None)
    assert len(guarded.workspaces) == 2
    for memory, size in guarded.workspaces:
        assert (memory[size:] == 255).all()
        # the last piece is used
        assert (memory[size - 1024 : size] != 255).any()


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
    check(make_features((1, 200, 136), dtype), make_bases(136, 20), num_iters=2)


@dtypes
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("channels", "num_bases"), [(512, 64), (200, 130)])
def test_the_plan_of_every_device(emulated, monkeypatch, device, channels, num_bases, dtype):
    monkeypatch.setattr(emulated, "properties", DEVICES[device])
    check(make_features((1, 70, channels), dtype), make_bases(channels, num_bases), num_iters=2)


def test_a_failed_launch_names_kernel_shape_and_reason(emulated, monkeypatch):
    def too_much(plan):
        plan.m_step.shared_memory = 300 * 1024

    monkeypatch.setattr(emulated, "change_plan", too_much)
    x, bases = make_features((2, 70, 40), torch.bfloat16), make_bases(40, 70)
    shape = "B = 2, H = 1, N = 70, C = 40, Cv = 40, K = 70, bfloat16"
    with pytest.raises(RuntimeError, match=f"the launch of m_step failed for {shape}: invalid argument"):
        ema_ops.em_attention(x, bases, backend="cuda")
