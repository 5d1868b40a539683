"""Batch norm over the pictures of all processes, on any device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist


class _SumOverRanks(torch.autograd.Function):
    """The sum of a tensor over all ranks; every rank's loss depends on it, so gradients are summed over them too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose mean and variance in training are those of [B, H, W] of all ranks of `group`.

    `nn.SyncBatchNorm` does the same in fused kernels, on GPUs only. Here automatic differentiation takes the gradient
    through the sums over the ranks. Ranks may have different numbers of pictures. Options and state are those of
    `nn.BatchNorm2d`.
    """

    def __init__(self, num_features: int, *, group: dist.ProcessGroup, **options: Any) -> None:
        super().__init__(num_features, **options)
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """`x` [B, C, H, W], normalised; moves the running statistics in training."""
        if not self.training:
            return super().forward(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        count = wide.new_tensor([wide.numel() / wide.shape[1]])
        sums = _SumOverRanks.apply(torch.cat([wide.sum((0, 2, 3)), count]), self.group)
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = wide - mean[:, None, None]
        # a second sum, as the difference of two large numbers would lose the digits of the variance
        variance = _SumOverRanks.apply(centred.square().sum((0, 2, 3)), self.group) / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1).clamp_min(1))
        y = centred * (variance + self.eps).rsqrt()[:, None, None]
        if self.affine:
            y = y * self.weight[:, None, None] + self.bias[:, None, None]
        return y.to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics as `nn.BatchNorm2d` does."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
        self.running_var.lerp_(variance.to(self.running_var.dtype), weight)
