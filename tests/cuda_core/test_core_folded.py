"""The loop behind a folded convolution, executed on the CPU, and what it promises beyond the results."""

from __future__ import annotations

import pytest
import torch
from backend_checks import DTYPES, assert_same_bits, make_bases, make_features, normal, uniform
from folding_checks import check_folding, results_and_gradients
from judge import assert_close_to_reference
from loop_tests import dtypes, orders
from test_promises import GuardedCore

from ema_ops import EMAUnit
from ema_ops.folding import folded_em_attention

bf16 = torch.bfloat16


def run(x, num_bases, images=slice(None), **options):
    """y, the last bases and all gradients of a loss over `images`."""
    batch, _, channels = x.shape
    convolution = normal(channels, channels, seed=5, dtype=x.dtype) / channels**0.5, normal(channels, seed=6)
    leaves = [t.detach().requires_grad_() for t in (x, *convolution, make_bases(batch, 1, channels, num_bases))]
    grads = normal(*x.shape, seed=2), normal(batch, 1, channels, num_bases, seed=3)
    for grad in grads:
        grad[[i for i in range(batch) if i not in range(*images.indices(batch))]] = 0
    options = {"num_iters": 2, **options}
    y, last, grad_x, *of_convolution, of_bases = results_and_gradients(
        lambda *tensors: folded_em_attention(*tensors, backend="cuda", **options), leaves, grads
    )
    return y, last, grad_x, of_bases, *of_convolution


# on both sides of the tiles: of positions, channels and bases
@dtypes
@orders
@pytest.mark.parametrize(("positions", "channels", "num_bases"), [(64, 64, 64), (65, 130, 7), (35, 20, 130)])
def test_sizes(backend, positions, channels, num_bases, layout, dtype):
    check_folding(make_features((2, positions, channels), dtype, layout), num_bases, backend, num_iters=2)


@dtypes
@pytest.mark.parametrize("grad_iters", [1, 3])
def test_options(backend, grad_iters, dtype):
    x, weight = make_features((2, 70, 40), dtype, "slice"), uniform(2, 70, seed=4)
    options = {"weight": weight, "scale": 1.5, "eps": 0.3, "eps_mode": "max", "grad_iters": grad_iters}
    check_folding(x, 9, backend, num_iters=3, **options)


@orders
@pytest.mark.parametrize("num_bases", [4, 70])
def test_nan_stays_in_its_image(backend, num_bases, layout):
    x, others = make_features((3, 70, 12), bf16, layout), slice(None, None, 2)
    clean = run(x, num_bases, others)
    x[1, 3] = float("nan")
    dirty = run(x, num_bases, others)
    # the gradient of the convolution is one for all images
    assert_same_bits(dirty[:4], clean[:4], of=others)
    assert dirty[0][1].isnan().all()


@orders
def test_same_call_same_bits_in_any_order_of_blocks(backend, monkeypatch, layout):
    x = make_features((2, 130, 70), bf16, layout)
    first = run(x, 20)
    for order in ("reverse", "shuffled"):
        monkeypatch.setenv("EMA_SIMT_ORDER", order)
        assert_same_bits(run(x, 20), first)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("num_bases", [9, 70])
def test_the_workspace_is_as_large_as_it_says(emulated, monkeypatch, num_bases, dtype):
    guarded = GuardedCore(emulated.core)
    monkeypatch.setattr(emulated, "core", guarded)
    run(make_features((2, 70, 40), dtype), num_bases, weight=torch.ones(2, 70))
    assert len(guarded.workspaces) == 2
    for memory, size in guarded.workspaces:
        assert (memory[size:] == 255).all()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_layer_in_training_is_two_calls(emulated, monkeypatch, memory_format):
    """Judged beside the same layer as it is written."""
    entries, run_entry = [], emulated._run
    monkeypatch.setattr(emulated, "_run", lambda entry, *rest: (entries.append(entry), run_entry(entry, *rest)))
    folded = EMAUnit(40, 12, backend="cuda", fold=True)
    plain, exact = (EMAUnit(40, 12, backend="torch", fold=False) for _ in range(2))
    for unit in (plain, exact):
        unit.load_state_dict(folded.state_dict())
    results = []
    for unit in (folded, plain, exact.double()):
        x = normal(2, 40, 9, 8, seed=0).to(unit.conv1.weight.dtype, memory_format=memory_format).requires_grad_()
        unit(x).backward(normal(2, 40, 9, 8, seed=1).to(x.dtype))
        results.append((x.grad, unit.conv1.weight.grad, unit.conv1.bias.grad, unit.attention.bases))
    assert entries == ["em_folded_forward", "em_folded_backward"]
    for ours, rounded, reference in zip(*(results[i] for i in (0, 1, 2)), strict=True):
        assert_close_to_reference(ours, reference, rounded, factor=3.0)
