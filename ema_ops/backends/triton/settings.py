"""Block sizes, warps and stages of the kernels: a plain table by architecture, dtype, C and K, no tuning at run time.

`tests/triton_compile` compiles what it gives: no spills, and within the shared memory of the architecture.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

from ...problem import Problem
from .plan import block

# KiB of shared memory one program may use
SHARED_MEMORY = {"sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99, "gfx942": 64}
# most bases at a time in a product over K
CHUNK_OF_BASES = 64


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


class Fused(NamedTuple):
    """What the fused kernel can hold: bases, elements of the sums C x K, and elements of a tile of x, all padded."""

    bases: int
    sums: int
    tile: int
    num_warps: int
    num_stages: int


FAMILIES = {
    "sm_80": "large",
    "sm_86": "small",
    "sm_89": "small",
    "sm_90": "large",
    "sm_100": "large",
    "sm_120": "small",
    "gfx942": "amd",
    "interpreter": "interpreter",
}
# for 16-bit features only: float32 products have no tensor cores and want small blocks
FUSED = {
    "large": Fused(64, 32 * 1024, 16 * 1024, 8, 3),
    "small": Fused(64, 32 * 1024, 8 * 1024, 8, 3),
    "amd": Fused(64, 16 * 1024, 8 * 1024, 4, 1),
    "interpreter": Fused(64, 32 * 1024, 16 * 1024, 8, 2),
}
# two float32 accumulators [BLOCK_N, K] without tensor cores
EXACT_BACKWARD = (Launch(32, 32), Launch(16, 32), Launch(16, 16))
# by family, for 16-bit and for 32-bit features: a launch for K up to 64, 128 and 256
KERNELS = {
    "e_step": {
        "large": ((Launch(64, 64, 8, 3), Launch(64, 32, 8, 3), Launch(64, 32, 8, 3)), (Launch(64, 32),) * 3),
        "small": ((Launch(64, 32, 8, 3), Launch(64, 32, 8, 3), Launch(64, 32, 8, 2)), (Launch(64, 32),) * 3),
        "amd": ((Launch(64, 64, 4), Launch(64, 32, 4), Launch(64, 32, 8)), (Launch(64, 32),) * 3),
    },
    "m_step": {
        "large": (
            (Launch(64, 128, 4, 3), Launch(64, 128, 8, 3), Launch(64, 64, 8, 3)),
            (Launch(32, 32), Launch(32, 32), Launch(16, 32)),
        ),
        "small": ((Launch(64, 64, 4, 3), Launch(64, 64, 8, 3), Launch(32, 64, 8, 3)), (Launch(32, 32),) * 3),
        "amd": ((Launch(64, 128, 4), Launch(64, 64, 4), Launch(32, 64)), (Launch(32, 32),) * 3),
    },
    "reconstruct": {
        "large": ((Launch(64, 128, 4),) * 3, (Launch(64, 32),) * 3),
        "small": ((Launch(64, 128, 4),) * 3, (Launch(64, 32),) * 3),
        "amd": ((Launch(64, 64, 4),) * 3, (Launch(64, 32),) * 3),
    },
    "e_step_backward": {
        "large": ((Launch(64, 64, 4, 3), Launch(64, 32, 8, 3), Launch(32, 32, 8, 3)), EXACT_BACKWARD),
        "small": ((Launch(64, 32, 4, 3), Launch(64, 32, 8, 2), Launch(32, 32, 8, 2)), EXACT_BACKWARD),
        "amd": ((Launch(64, 64, 4), Launch(64, 32, 8), Launch(32, 32, 8)), EXACT_BACKWARD),
    },
    "grad_features": {
        "large": ((Launch(128, 128, 8, 3),) * 3, (Launch(64, 32),) * 3),
        "small": ((Launch(64, 128, 8, 3),) * 3, (Launch(64, 32),) * 3),
        "amd": ((Launch(64, 64, 4),) * 3, (Launch(64, 32),) * 3),
    },
    "copy_rows": {family: ((Launch(64, 64, 4),) * 3,) * 2 for family in ("large", "small", "amd")},
}
INTERPRETED = Launch(32, 64)


def launch_of(kernel: str, problem: Problem) -> Launch:
    """The row of `kernel` for `problem`."""
    family = FAMILIES[architecture(problem.device)]
    if family == "interpreter":
        return INTERPRETED
    by_bases = KERNELS[kernel][family][problem.dtype.itemsize > 2]
    return by_bases[(problem.num_bases > 64) + (problem.num_bases > 128)]


def fused_step(problem: Problem) -> Launch | None:
    """The launch of the fused kernel, or None where it cannot hold the sums: then `e_step` and `m_step`."""
    limits = FUSED[FAMILIES[architecture(problem.device)]]
    channels, num_bases = block(problem.channels), block(problem.num_bases)
    # more positions of more channels spill: the logits of a tile are in registers too
    positions = min(64 if channels <= 128 else 32, limits.tile // channels)
    fits = positions >= 16 and num_bases <= limits.bases and channels * num_bases <= limits.sums
    if problem.dtype.itemsize > 2 or not fits:
        return None
    return Launch(positions, channels, limits.num_warps, limits.num_stages)


def precision(problem: Problem) -> str:
    """How float32 products are made: exactly, or as PyTorch does them where the user allowed TF32."""
    allowed = problem.dtype == torch.float32 and problem.device.type == "cuda" and torch.version.hip is None
    return "tf32" if allowed and torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


@cache
def architecture(device: torch.device) -> str:
    """The row of the tables for `device`: its own, or that of the nearest older architecture that has one."""
    if device.type == "cpu":
        return "interpreter"
    if torch.version.hip is not None:
        return "gfx942"
    major, minor = torch.cuda.get_device_capability(device)
    known = [int(name[3:]) for name in SHARED_MEMORY if name.startswith("sm_")]
    return f"sm_{max(number for number in known if number <= 10 * major + minor)}"
