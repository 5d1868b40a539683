"""The layers: `EMAttention`, the paper's `EMAUnit`, and the options that reproduce other implementations."""

from __future__ import annotations

from typing import Any

from .attention import EMAttention
from .unit import EMAUnit

# Keyword arguments of EMAttention and EMAUnit that reproduce the semantics of other implementations.
PRESETS: dict[str, dict[str, Any]] = {
    "official": {"momentum": 0.1, "renormalize": "none", "eps": 1e-6, "eps_mode": "add", "grad_iters": 0},
    "mmsegmentation": {"momentum": 0.1, "renormalize": "mean", "eps": 1e-12, "eps_mode": "max", "grad_iters": 0},
}

__all__ = ["PRESETS", "EMAUnit", "EMAttention"]
