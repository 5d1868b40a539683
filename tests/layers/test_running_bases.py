"""The moving average: what counts, what is left out, and what several processes make of it."""

import copy

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing

import ema_ops
from ema_ops.layers.running_bases import update_running_bases

OPTIONS = {"momentum": 0.25, "eps": 1e-6, "eps_mode": "add"}


def unit(bases):
    return bases / (bases.norm(dim=-2, keepdim=True) + 1e-6)


@pytest.mark.parametrize(
    ("renormalize", "formula"),
    [
        ("mixed", lambda old, mean: unit(0.75 * old + 0.25 * mean)),
        ("mean", lambda old, mean: 0.75 * old + 0.25 * unit(mean)),
        ("none", lambda old, mean: 0.75 * old + 0.25 * mean),
    ],
)
def test_formulas(renormalize, formula):
    running, bases = torch.randn(2, 4, 3, dtype=torch.float64), torch.randn(5, 2, 4, 3, dtype=torch.float64)
    expected = formula(running.clone(), bases.mean(0))
    update_running_bases(running, bases, renormalize=renormalize, **OPTIONS)
    torch.testing.assert_close(running, expected)


def test_images_that_are_not_finite_or_have_no_weight_are_left_out():
    running, bases = torch.randn(1, 4, 3, dtype=torch.float64), torch.randn(5, 1, 4, 3, dtype=torch.float64)
    expected = running.clone()
    update_running_bases(expected, bases[[0, 4]], renormalize="mixed", **OPTIONS)
    bases[1, 0, 2, 1], bases[2, 0, 0, 0] = float("nan"), float("inf")
    weight = torch.ones(5, 7)
    weight[3] = 0
    update_running_bases(running, bases, weight, renormalize="mixed", **OPTIONS)
    torch.testing.assert_close(running, expected)


@pytest.mark.parametrize("bases", [torch.full((3, 1, 4, 3), float("nan")), torch.zeros(0, 1, 4, 3)])
@pytest.mark.parametrize("renormalize", ["mixed", "mean", "none"])
def test_without_any_usable_image_the_buffer_stays(bases, renormalize):
    running = torch.randn(1, 4, 3)
    before = running.clone()
    update_running_bases(running, bases, renormalize=renormalize, **OPTIONS)
    assert torch.equal(running, before)


@pytest.mark.parametrize("eps_mode", ["add", "max"])
@pytest.mark.parametrize("renormalize", ["mixed", "mean", "none"])
def test_a_dead_base_without_eps_does_not_make_the_buffer_nan(renormalize, eps_mode):
    layer = ema_ops.EMAttention(8, 5, momentum=1.0, renormalize=renormalize, eps=0.0, eps_mode=eps_mode)
    _, bases = layer(torch.zeros(2, 8, 6, 5), return_bases=True)
    assert torch.count_nonzero(bases) == 0
    assert torch.count_nonzero(layer.bases) == 0
    assert layer(torch.randn(2, 8, 6, 5)).isfinite().all()


def test_a_nan_image_in_a_batch_does_not_reach_the_buffer():
    clean, dirty = ema_ops.EMAttention(8, 5), ema_ops.EMAttention(8, 5)
    dirty.load_state_dict(clean.state_dict())
    x = torch.randn(3, 8, 6, 5)
    clean(x[:2])
    x[2, 3] = float("nan")
    dirty(x)
    torch.testing.assert_close(dirty.bases, clean.bases)


def test_nothing_is_read_back_to_the_host():
    """Fake tensors have no values: any read of one would raise."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        running = torch.randn(1, 4, 3)
        version = running._version
        update_running_bases(running, torch.randn(2, 1, 4, 3), torch.ones(2, 7), renormalize="mixed", **OPTIONS)
    assert running._version > version


def _average_over_ranks(rank, folder, world):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    torch.manual_seed(0)
    layer = ema_ops.EMAttention(8, 5, average_group=dist.group.WORLD).double()
    whole = torch.randn(5, 8, 6, 4, dtype=torch.float64)
    layer(whole.split([2, 3, 0][:world])[rank])
    assert copy.deepcopy(layer).average_group is layer.average_group
    torch.save(layer.bases, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_count_by_their_images(tmp_path, world):
    """Three ranks: the last has no image at all."""
    torch.manual_seed(0)
    layer = ema_ops.EMAttention(8, 5).double()
    layer(torch.randn(5, 8, 6, 4, dtype=torch.float64))
    multiprocessing.spawn(_average_over_ranks, (str(tmp_path), world), nprocs=world)
    for rank in range(world):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt", weights_only=True), layer.bases)
