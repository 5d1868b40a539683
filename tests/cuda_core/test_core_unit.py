"""The unit in evaluation, executed on the CPU, against float64; and what it promises beyond the results."""

from __future__ import annotations

import pytest
import torch
from backend_checks import assert_same_bits, make_features, normal, uniform
from emulated import DEVICES, EmulatedBackend, installed
from judge import assert_close_to_reference
from loop_tests import dtypes, orders
from test_promises import GuardedCore
from unit_checks import check_unit, make_parameters, run_unit

from ema_ops import EMAUnit

bf16 = torch.bfloat16


def features(*sizes, dtype=bf16, layout="rows"):
    """[B, 1, N, C]."""
    return make_features(sizes, dtype, layout).unsqueeze(1)


# on both sides of the tiles: of positions, of channels of y, of bases that come at once
@dtypes
@orders
@pytest.mark.parametrize(
    ("positions", "channels", "num_bases"), [(1, 3, 1), (64, 64, 64), (130, 96, 7), (65, 130, 65), (3, 257, 129)]
)
def test_sizes(backend, positions, channels, num_bases, layout, dtype):
    x = features(2, positions, channels, dtype=dtype, layout=layout)
    y, _ = check_unit(x, make_parameters(channels, num_bases, dtype), backend, num_iters=2)
    assert y.stride(-1 if layout == "rows" or positions == 1 else -2) == 1


@dtypes
def test_a_slice_with_weights_and_options(backend, dtype):
    x, weight = features(2, 70, 40, dtype=dtype, layout="slice"), uniform(2, 1, 70, seed=4)
    options = {"weight": weight, "scale": 1.5, "eps": 0.3, "eps_mode": "max"}
    check_unit(x, make_parameters(40, 9, dtype), backend, **options)


@dtypes
def test_a_power_of_two_of_the_weights_goes_through(backend, dtype):
    """Though sums and masses are then far from the range of float16."""
    x, parameters = features(1, 70, 40, dtype=dtype), make_parameters(40, 9, dtype)
    weight = 0.5 + uniform(1, 1, 70, seed=4)
    expected = run_unit(x, parameters, backend=backend, weight=weight, eps=0.0)
    for factor in (2.0**-40, 2.0**40):
        assert_same_bits(run_unit(x, parameters, backend=backend, weight=factor * weight, eps=0.0), expected)


@orders
def test_features_that_the_bias_moves_to_zero(backend, layout):
    """What the loop sees is small beside x, and the residual is not."""
    x, parameters = features(1, 130, 64, layout=layout).relu() + 1, make_parameters(64, 16, bf16)
    moved = x.float().mean((0, 1, 2)) @ parameters["weight1"].float().mT
    check_unit(x, parameters | {"bias1": parameters["bias1"] - moved}, backend)


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize(("num_bases", "dtype"), [(20, bf16), (200, bf16), (200, torch.float32)], ids=str)
def test_every_plan_gives_the_same_bits(emulated, monkeypatch, slots, num_bases, dtype):
    x, parameters = features(1, 70, 136, dtype=dtype), make_parameters(136, num_bases, dtype)
    expected = run_unit(x, parameters, backend="cuda", num_iters=1)

    def change(plan):
        plan.unit_tail.slots, plan.unit_tail.shared_memory = slots, 227 * 1024

    monkeypatch.setattr(emulated, "change_plan", change)
    assert_same_bits(run_unit(x, parameters, backend="cuda", num_iters=1), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_the_plan_of_every_device(emulated, monkeypatch, device):
    monkeypatch.setattr(emulated, "properties", (*DEVICES[device], False))
    check_unit(features(1, 70, 520), make_parameters(520, 64, bf16), "cuda", num_iters=1)


@orders
def test_same_call_same_bits_in_any_order_of_blocks(emulated, monkeypatch, layout):
    x, parameters = features(2, 130, 70, layout=layout), make_parameters(70, 20, bf16)
    first = run_unit(x, parameters, backend="cuda", num_iters=2)
    for order in ("reverse", "shuffled"):
        monkeypatch.setenv("EMA_SIMT_ORDER", order)
        assert_same_bits(run_unit(x, parameters, backend="cuda", num_iters=2), first)


# one position, less than a tile, tiles and pairs of them that end within; N odd, and even but no multiple of 8
@pytest.mark.parametrize(
    ("positions", "channels", "num_bases", "dtype"),
    [(1, 8, 1, bf16), (63, 72, 64, torch.float16), (300, 264, 20, bf16), (531, 64, 7, bf16)],
    ids=str,
)
def test_images_whose_rows_start_anywhere_on_hopper(core, positions, channels, num_bases, dtype):
    """A slice whose rows begin at odd places: neither x nor y has boxes; and NaN stays in its image."""

    def look(plan):
        assert plan.unit_tail.hopper
        assert plan.unit_tail.any_rows
        assert plan.end_iteration

    backend = EmulatedBackend(core, 4, hopper=True)
    backend.change_plan = look
    x = normal(2, 1, channels, positions + 3, seed=0).to(dtype)[..., 3:].mT
    with installed(backend):
        y, bases = check_unit(x, make_parameters(channels, num_bases, dtype), "cuda", num_iters=1)
        x[1] = float("nan")
        dirty = run_unit(x, make_parameters(channels, num_bases, dtype), backend="cuda", num_iters=1)
    assert_same_bits(dirty, (y, bases), of=slice(0, 1))
    assert dirty[0][1].isnan().all()


@orders
@pytest.mark.parametrize("num_bases", [4, 70])
def test_nan_stays_in_its_image(backend, num_bases, layout):
    x, parameters = features(3, 70, 12, layout=layout), make_parameters(12, num_bases, bf16)
    clean = run_unit(x, parameters, backend=backend, num_iters=1)
    x[1, 0, 3] = float("nan")
    dirty = run_unit(x, parameters, backend=backend, num_iters=1)
    for image in (0, 2):
        assert_same_bits(dirty, clean, of=slice(image, image + 1))
    assert dirty[0][1].isnan().all()
    assert dirty[1][1].isnan().all()


@pytest.mark.parametrize("num_bases", [9, 70])
def test_the_workspace_is_as_large_as_it_says(emulated, monkeypatch, num_bases):
    guarded = GuardedCore(emulated.core)
    monkeypatch.setattr(emulated, "core", guarded)
    run_unit(features(2, 70, 40), make_parameters(40, num_bases, bf16), backend="cuda")
    ((memory, size),) = guarded.workspaces
    assert (memory[size:] == 255).all()
    assert (memory[size - 1024 : size] != 255).any()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_layer_in_evaluation_is_one_call(emulated, monkeypatch, memory_format):
    """Judged beside the same layer as it is written."""
    entries, run = [], emulated._run
    monkeypatch.setattr(emulated, "_run", lambda entry, *rest: (entries.append(entry), run(entry, *rest)))
    folded = EMAUnit(40, 12, backend="cuda", fold=True).eval()
    x, statistics = normal(2, 40, 9, 8, seed=0).to(memory_format=memory_format), uniform(40, seed=1)
    folded.norm.running_mean.copy_(statistics - 0.5)
    folded.norm.running_var.copy_(statistics + 0.5)
    plain = EMAUnit(40, 12, backend="torch", fold=False).eval()
    plain.load_state_dict(folded.state_dict())
    with torch.no_grad():
        y, rounded, exact = folded(x), plain(x), plain.double()(x.double())
    assert entries == ["em_unit"]
    assert y.stride() == x.stride()
    assert_close_to_reference(y, exact, rounded)
