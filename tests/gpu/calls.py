"""Calls of the loop that the GPU tests share, and their judgement by the rule of `judge`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from examples import features, unit_bases
from judge import assert_close_to_reference
from torch import Tensor
from unit_checks import make_parameters

import ema_ops
from ema_ops import reference
from ema_ops.backends import MODULES

GPU_BACKENDS = [name for name in MODULES if name != "torch"]
MAIN = (4, 65 * 65, 512, 64)  # B, N, C, K
LARGEST = (3000, 600, 200)  # N, C, K of random calls
REPEATS = 100  # of a call that must give the same bits every time
ORDERS = ("rows", "columns", "slice of rows", "slice of columns")
FACTORS = {"y": 2, "bases": 2, "grad_x": 3, "grad_bases": 3}


@dataclass
class Call:
    """Features x and grad_y [B, N, C] and bases [C, K]; calling it runs forward and backward with `backend`."""

    backend: str
    x: Tensor
    bases: Tensor
    grad_y: Tensor
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self) -> tuple[Tensor, ...]:
        """y, the last bases, grad_x and the gradient of the bases; None for a gradient that is not there."""
        y, last = ema_ops.em_attention(self.x, self.bases, backend=self.backend, **self.options)
        return y, last, *torch.autograd.grad(y, (self.x, self.bases), self.grad_y, allow_unused=True)

    @torch.no_grad()
    def copy_(self, other: Call) -> None:
        """The numbers of `other` in the memory of this call."""
        for mine, its in ((self.x, other.x), (self.bases, other.bases), (self.grad_y, other.grad_y)):
            mine.copy_(its)


def draw_call(backend, shape=MAIN, dtype=torch.bfloat16, order="rows", seed=0, device="cuda", **options) -> Call:
    """A call with fresh inputs."""
    batch, positions, channels, num_bases = shape
    x, grad_y = (
        place(features(batch, positions, channels, dtype=dtype, seed=seed + i), order, device) for i in (0, 1000)
    )
    bases = unit_bases(channels, num_bases, dtype=torch.float32, seed=seed + 2000).to(device)
    return Call(backend, x.requires_grad_(), bases.requires_grad_(), grad_y, options)


def draw_unit(shape=MAIN, dtype=torch.bfloat16, order="rows") -> tuple[Tensor, dict[str, Tensor]]:
    """Fresh features [B, 1, N, C] and the parameters of the unit."""
    batch, positions, channels, num_bases = shape
    parameters = make_parameters(channels, num_bases, dtype)
    x = place(features(batch, 1, positions, channels, dtype=dtype), order, "cuda")
    return x, {name: value.cuda() for name, value in parameters.items()}


def place(rows: Tensor, order: str, device: str) -> Tensor:
    """`rows` [.., N, C] on the device in one of `ORDERS`. Slices begin at odd addresses."""
    *outer, positions, channels = rows.shape
    is_slice, columns = order.startswith("slice"), order.endswith("columns")
    sizes = [positions + 3, channels + 5] if is_slice else [positions, channels]
    memory = torch.zeros(*outer, *(reversed(sizes) if columns else sizes), dtype=rows.dtype, device=device)
    wide = memory.mT if columns else memory
    target = wide[..., 1 : 1 + positions, 1 : 1 + channels] if is_slice else wide
    return target.copy_(rows)


def check_loop(call: Call, *, on=None, case="") -> None:
    """Judge all results of a call; `on`: the device on which float64 and the plain formula run, by default its own."""
    dtype, weight = call.x.dtype, call.options.get("weight")
    ours = call()
    yardsticks = []
    for kind in (torch.float64, dtype):
        leaves = [tensor.detach().to(on, kind).requires_grad_() for tensor in (call.x, call.bases)]
        options = dict(call.options) if weight is None else {**call.options, "weight": weight.to(on, kind)}
        y, last = reference.em_attention(*leaves, **options)
        gradients = torch.autograd.grad(y, leaves, call.grad_y.to(on, kind), allow_unused=True)
        yardsticks.append((y.detach(), last.detach(), *gradients))
    for (name, factor), got, exact, plain in zip(FACTORS.items(), ours, *yardsticks, strict=True):
        if exact is None:
            assert got is None, case
        elif name == "grad_bases" and 1 in (call.x.shape[-2], call.bases.shape[-1]):
            # one position or one base: its exact value is 0, and what is left is rounding
            assert got.isfinite().all(), case
        elif dtype == torch.float16 and not plain.isfinite().all():
            # a base of little mass: automatic differentiation overflows where ours must not
            assert got.isfinite().all(), case
        else:
            assert_close_to_reference(got.to(exact.device), exact, plain, factor=factor, name=f"{name} {case}")


def same_bits(first, second) -> bool:
    """Whether all results are equal bit by bit."""
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
