"""Inputs that several tests share."""

from __future__ import annotations

import torch
from torch import Tensor


def features(*shape: int, dtype: torch.dtype = torch.float64, order: str = "rows", seed: int = 0) -> Tensor:
    """Normal features of `shape` [.., N, C]; order "columns" has the positions fastest in memory, as an image."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return x if order == "rows" else x.transpose(-1, -2).contiguous().transpose(-1, -2)


def unit_bases(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    """Normal bases of `shape` [.., C, K], every column of length one."""
    bases = features(*shape, seed=seed)
    return (bases / bases.norm(dim=-2, keepdim=True)).to(dtype)
