"""What may stand where the EM unit stands in the network, for comparisons of cost: [B, C, H, W] -> the same shape."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ema_ops import EMAUnit
from ema_ops.demo.network import SelfAttention

from ..peers import official_loop


class OfficialUnit(nn.Module):
    """The unit as the official code computes it: eager, with no gradient through the loop.

    Li et al., ICCV 2019, figure 2. The running bases move towards the mean over the images and are not scaled again.
    """

    def __init__(self, channels: int, num_bases: int = 64, num_iters: int = 3, momentum: float = 0.1) -> None:
        super().__init__()
        self.num_iters, self.momentum = num_iters, momentum
        self.bases: Tensor
        self.register_buffer("bases", F.normalize(torch.randn(1, channels, num_bases), dim=1))
        self.conv1 = nn.Conv2d(channels, channels, 1)
        self.conv2 = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """The unit on `x` [B, C, H, W]."""
        features = self.conv1(x)
        with torch.no_grad():
            z, bases = official_loop(features.flatten(2).transpose(1, 2), self.bases, self.num_iters)
            y = (bases @ z.transpose(1, 2)).view_as(features)
            if self.training:
                self.bases.lerp_(bases.mean(0, keepdim=True), self.momentum)
        return F.relu(x + self.norm(self.conv2(F.relu(y))))


CONTEXTS: dict[str, Callable[[int], nn.Module]] = {
    "EM attention, exact gradient": EMAUnit,
    "EM attention, detached": lambda channels: EMAUnit(channels, grad_iters=0),
    "official unit, eager": OfficialUnit,
    "naive self-attention": SelfAttention,
    "no context": lambda channels: nn.Identity(),
}
"""Makes each context module for C channels. "official unit" has the detached gradient of the published code."""
