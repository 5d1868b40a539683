"""Mode "unit": the whole EMA unit in evaluation, ours and the official one.

It is relu(x + norm(conv2(relu(attention(conv1(x)))))). All peers have the same weights, drawn from the channels and
bases alone, in the dtype of x.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ema_ops import EMAUnit, reference
from ema_ops.backends import load, refusal
from ema_ops.problem import Problem

from .case import DTYPES, Case, Inputs
from .formulas import Formula
from .peers import RIVALS, Function, Peer, name_of, official

SEED = 5


@lru_cache(maxsize=4)
def _drawn(channels: int, num_bases: int, dtype: str) -> EMAUnit:
    """On the CPU, in evaluation, with a norm that has seen something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        unit = EMAUnit(channels, num_bases)
        unit.norm.get_buffer("running_mean").normal_(0, 0.1)
        unit.norm.get_buffer("running_var").uniform_(0.5, 2)
        unit.norm.get_parameter("weight").data.uniform_(0.5, 1.5)
    return unit.eval().requires_grad_(False).to(DTYPES[dtype])


def _on_device(case: Case, **options: Any) -> Callable[[torch.device], EMAUnit]:
    """Ours with those weights, made once for a device."""

    @lru_cache
    def make(device: torch.device) -> EMAUnit:
        unit = EMAUnit(case.channels, case.num_bases, case.num_iters, **options)
        unit.load_state_dict(_drawn(case.channels, case.num_bases, case.dtype).state_dict())
        return unit.eval().requires_grad_(False).to(device, DTYPES[case.dtype])

    return make


def _formula(case: Case, inputs: Inputs) -> Tensor:
    unit = _drawn(case.channels, case.num_bases, case.dtype)
    known = {name: value.to(inputs.x) for name, value in unit.state_dict().items() if value.is_floating_point()}
    rows = inputs.x @ known["conv1.weight"].flatten(1).T + known["conv1.bias"]
    y, _ = reference.em_attention(rows, known["attention.bases"][0], num_iters=case.num_iters)
    y = F.relu(y) @ known["conv2.weight"].flatten(1).T
    factor = known["norm.weight"] / torch.sqrt(known["norm.running_var"] + nn.BatchNorm2d(1).eps)
    return F.relu(inputs.x + (y - known["norm.running_mean"]) * factor + known["norm.bias"])


def _operations(case: Case) -> float:
    """Of an image, with both convolutions."""
    loop = 2.0 * (2 * case.num_iters + 1) * case.positions * case.channels * case.num_bases
    return loop + 4.0 * case.positions * case.channels**2


UNIT = Formula("EMA unit", _formula, _operations, strict=True)


def ours(backend: str, fold: bool) -> Peer:
    """`EMAUnit` of a backend, with the first convolution folded into the bases or as it stands."""

    def build(case: Case) -> Function:
        unit_on = _on_device(case, backend=backend, fold=fold)
        return lambda inputs: _rows(unit_on(inputs.x.device)(_images(case, inputs.x)))

    def refuses(case: Case, inputs: Inputs, mode: str) -> str | None:
        x, bases = inputs.x.unsqueeze(1), inputs.bases.unsqueeze(0)
        return refusal(load(backend), Problem.build(x, bases, num_iters=case.num_iters, grad_iters=case.num_iters))

    return Peer(f"{name_of(backend)}{' folded' if fold else ''}", UNIT, build, refuses)


def _official(unit: EMAUnit, x: Tensor, num_iters: int) -> Tensor:
    """The official formulation of images [B, C, H, W]."""
    y = official(_rows(unit.conv1(x)), unit.attention.bases, num_iters)
    y = y.transpose(1, 2).reshape(x.shape)
    return F.relu(x + unit.norm(unit.conv2(F.relu(y))))


def _build_official(case: Case) -> Function:
    unit_on = _on_device(case)
    return lambda inputs: _rows(_official(unit_on(inputs.x.device), _images(case, inputs.x), case.num_iters))


def _build_compiled(case: Case) -> Function:
    torch.compiler.reset()
    unit_on, compiled = _on_device(case), torch.compile(_official, fullgraph=True, dynamic=False)
    return lambda inputs: _rows(compiled(unit_on(inputs.x.device), _images(case, inputs.x), case.num_iters))


def _images(case: Case, x: Tensor) -> Tensor:
    return x.transpose(1, 2).unflatten(2, (case.height, case.width))


def _rows(images: Tensor) -> Tensor:
    return images.flatten(2).transpose(1, 2)


UNIT_RIVALS = {
    "official-detached": Peer("official-detached", UNIT, _build_official),
    "official-compiled": Peer("official-compiled", UNIT, _build_compiled, RIVALS["official-compiled"].refuses),
}
