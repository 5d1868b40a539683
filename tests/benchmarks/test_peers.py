"""Every peer computes its formula, in every mode, dtype and memory order, and returns y in the memory order of x."""

import pytest
import torch

import ema_ops
from benchmarks.case import Case, draw
from benchmarks.peers import RIVALS, ours
from benchmarks.verify import find_truth, judge
from benchmarks.workload import workload

CPU = torch.device("cpu")
PEERS = [ours("torch"), *(peer for peer in RIVALS.values() if peer.name != "official-compiled")]


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peer_computes_its_formula(peer, order, dtype):
    case = Case(2, 64, 3, 5, 6, 3, dtype, order)
    inputs = draw(case, CPU, 0)
    truth = find_truth(peer.formula, case, inputs, with_gradient=True)
    function = peer.build(case)
    for mode in ("forward", "backward", "full"):
        if peer.refuses(case, inputs, mode) is not None:
            continue
        y, grad_x = workload(peer, function, inputs, mode).run()
        assert (grad_x is None) == (mode == "forward" or not peer.has_gradient)
        verdict = judge(y, grad_x, truth)
        assert verdict.wrong is None, verdict.wrong
        assert y.stride() == inputs.x.stride()


def test_detached_formulation_carries_no_gradient():
    case = Case(1, 8, 3, 4, 4, 2, "float32", "contiguous")
    y = RIVALS["official-detached"].build(case)(draw(case, CPU, 0).requiring_grad())
    assert not y.requires_grad


def test_heads_need_channels_that_split():
    case = Case(1, 65, 3, 4, 4, 2, "float32", "contiguous")
    reason = RIVALS["sdpa-heads"].refuses(case, draw(case, CPU, 0), "forward")
    assert reason == "65 channels do not split into heads of 64"


def test_there_is_a_peer_for_every_backend():
    names = {"ema_ops/cuda", "ema_ops/triton", "ema_ops/torch"}
    assert {ours(name).name for name in ema_ops.available_backends()} == names
