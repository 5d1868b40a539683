"""What is timed for a peer in a mode, as two functions: what comes before the clock starts, and what it covers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .case import Inputs
from .peers import Function, Peer


@dataclass(frozen=True)
class Workload:
    """`prepare()` runs untimed before every repeat; `step(prepared)` is timed and returns (y, grad_x or None).

    `keep` asks backward to keep the graph, which replaying it needs.
    """

    prepare: Callable[[], Tensor | None]
    step: Callable[..., tuple[Tensor, Tensor | None]]

    def run(self) -> tuple[Tensor, Tensor | None]:
        """Once, untimed."""
        return self.step(self.prepare())


def workload(peer: Peer, function: Function, inputs: Inputs, mode: str) -> Workload:
    """The workload of `mode`: forward or unit (no graph), backward (after an untimed forward) or full (both)."""

    def forward(_, keep=False):
        with torch.no_grad():
            return function(inputs), None

    if mode in ("forward", "unit") or not peer.has_gradient:
        return Workload(lambda: None, forward)
    trained = inputs.requiring_grad()

    def backward(y, keep=False):
        return y, torch.autograd.grad(y, trained.x, trained.grad_y, retain_graph=keep)[0]

    if mode == "backward":
        return Workload(lambda: function(trained), backward)
    return Workload(lambda: None, lambda _, keep=False: backward(function(trained)))
