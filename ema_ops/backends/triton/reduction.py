"""Partial sums over the positions, one slot a split, and the kernel that adds the slots in a fixed order.

No atomics: the same call gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor

from ...problem import Problem
from .plan import Splits, block
from .tiles import inverse, kernel

SLOTS_AT_ONCE = 16


@kernel
def add_slots(
    sums,
    masses,
    unit,
    result,
    mass,
    length,
    splits,
    factor,
    eps,
    C: tl.constexpr,
    K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    NORMALIZE: tl.constexpr,
    EPS_ADD: tl.constexpr,
):
    """One base of one image: sums [splits, K, C] and masses [splits, K] to a column of result [C, K], mass [K].

    Both are times the `unit` of the image, unless that is None. NORMALIZE divides the sums by the mass, then by their
    length over C, which goes to length [K]; otherwise the sums are multiplied by `factor`.
    """
    program = tl.program_id(0)
    image, k = (program // K).to(tl.int64), program % K
    sums += image * splits * (K * C) + k * C
    masses += image * splits * K + k
    c = tl.arange(0, BLOCK_C)
    slot = tl.arange(0, BLOCK_S)
    total = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    total_mass = tl.zeros([BLOCK_S], tl.float32)
    for first in range(0, splits, BLOCK_S):
        s = (first + slot).to(tl.int64)
        total += tl.load(sums + s[:, None] * (K * C) + c[None, :], mask=(s < splits)[:, None] & (c < C), other=0.0)
        total_mass += tl.load(masses + s * K, mask=s < splits, other=0.0)
    column, weight = tl.sum(total, 0), tl.sum(total_mass, 0)
    if unit is not None:
        of_image = tl.load(unit + image)
        column, weight = column * of_image, weight * of_image
    if NORMALIZE:
        column *= inverse(weight, eps, EPS_ADD)
        norm = tl.sqrt(tl.sum(column * column, 0))
        column *= inverse(norm, eps, EPS_ADD)
        tl.store(length + image * K + k, norm)
    else:
        column *= factor
    tl.store(result + image * (C * K) + c * K + k, column, mask=c < C)
    tl.store(mass + image * K + k, weight)


@dataclass(frozen=True)
class Partials:
    """One slot of sums [K, C] and mass [K] for every split of every image."""

    sums: Tensor  # [B * H, splits, K, C]
    masses: Tensor  # [B * H, splits, K]
    unit: Tensor | None  # [B, H]: what they are counted in, None: 1

    @classmethod
    def empty(
        cls, problem: Problem, splits: Splits, channels: int | None = None, unit: Tensor | None = None
    ) -> Partials:
        """Uninitialised slots for features of `channels` channels (those of x, if not said)."""
        sizes = (problem.batch * problem.heads, splits.number, problem.num_bases)
        channels = problem.channels if channels is None else channels
        sums = torch.empty(*sizes, channels, dtype=torch.float32, device=problem.device)
        return cls(sums, torch.empty(sizes, dtype=torch.float32, device=problem.device), unit)

    def add(self, result: Tensor, mass: Tensor, factor: float = 1.0) -> None:
        """Write factor * sums to `result` [B, H, C, K] and the mass to `mass` [B, H, K], both dense float32."""
        self._launch(result, mass, mass, factor, 0.0, False, True)

    def normalize(self, problem: Problem, bases: Tensor, mass: Tensor, length: Tensor) -> None:
        """Write the next bases [B, H, C, K], the mass and the length [B, H, K], all dense float32."""
        self._launch(bases, mass, length, 1.0, problem.eps, True, problem.eps_mode == "add")

    def _launch(self, result, mass, length, factor, eps, normalize, eps_add):
        images, splits, num_bases, channels = self.sums.shape
        block_channels = block(channels)
        add_slots[(images * num_bases,)](
            self.sums,
            self.masses,
            self.unit,
            result,
            mass,
            length,
            splits,
            factor,
            eps,
            C=channels,
            K=num_bases,
            BLOCK_C=block_channels,
            BLOCK_S=SLOTS_AT_ONCE,
            NORMALIZE=normalize,
            EPS_ADD=eps_add,
            num_warps=8 if block_channels > 512 else 4,
        )
