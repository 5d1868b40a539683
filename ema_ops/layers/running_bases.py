"""The moving average of the bases: what one training forward does to the buffer, in place, once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist

RENORMALIZE = ("mixed", "mean", "none")


def update_running_bases(
    running: Tensor,
    bases: Tensor,
    weight: Tensor | None = None,
    *,
    momentum: float,
    renormalize: str,
    eps: float,
    eps_mode: str,
    group: dist.ProcessGroup | None = None,
) -> None:
    """Move `running` [H, C, K] towards the mean of `bases` [B, H, C, K] over the images.

    Images whose bases are not finite, or whose `weight` [B, ..] is nowhere positive, are left out of the mean; if
    none is left the buffer stays as it is. Nothing is read back to the host. With `group`, sums and counts are
    added over its ranks first, so that ranks count by their number of images.

    `momentum` is the weight of the new value. `renormalize` says what is scaled to length one over C: the "mean"
    before mixing (mmsegmentation), the "mixed" result, or "none" (official).
    """
    bases = bases.detach()
    usable = bases.isfinite().flatten(1).all(1)
    if weight is not None:
        usable = usable & (weight > 0).flatten(1).any(1)
    total = torch.where(usable[:, None, None, None], bases, 0).sum(0)
    count = usable.sum().to(total.dtype)
    if group is not None:
        both = torch.cat([total.flatten(), count.unsqueeze(0)])
        dist.all_reduce(both, group=group)
        total, count = both[:-1].view_as(total), both[-1]

    mean = total / count.clamp_min(1)
    if renormalize == "mean":
        mean = normalize_over_channels(mean, eps, eps_mode)
    mixed = torch.lerp(running.to(mean.dtype), mean, momentum)
    if renormalize == "mixed":
        mixed = normalize_over_channels(mixed, eps, eps_mode)
    running.copy_(torch.where(count > 0, mixed, running.to(mean.dtype)))


def normalize_over_channels(bases: Tensor, eps: float, eps_mode: str) -> Tensor:
    """`bases` [.., C, K] with every column scaled to length one; a column of zeros stays, also with eps = 0."""
    length = torch.linalg.vector_norm(bases, dim=-2, keepdim=True)
    divisor = length + eps if eps_mode == "add" else length.clamp_min(eps)
    return bases / divisor.masked_fill(divisor == 0, 1)
