"""The demo's network: four convolutions, one context layer, two convolutions. Only the context layer differs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import EMAUnit

CHANNELS = 64
NUM_BASES = 16
STRIDE = 4


class SelfAttention(nn.Module):
    """The non-local block in its plain form: every position looks at every other through an [N, N] matrix.

    Wang et al., "Non-local Neural Networks", CVPR 2018: queries, keys and values of half the channels, softmax of
    their scaled products, a 1x1 convolution with batch norm, addition to the input; and a ReLU, as behind the EMA unit.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = channels // 2
        self.queries, self.keys, self.values = (nn.Conv2d(channels, self.inner, 1) for _ in range(3))
        self.project = nn.Sequential(nn.Conv2d(self.inner, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """`x` [B, C, H, W] with the mixture of all positions added, behind a ReLU."""
        queries, keys, values = (part(x).flatten(2) for part in (self.queries, self.keys, self.values))
        attention = torch.softmax(queries.transpose(1, 2) @ keys * self.inner**-0.5, dim=-1)
        mixed = values @ attention.transpose(1, 2)
        return F.relu(x + self.project(mixed.unflatten(2, x.shape[2:])))


CONTEXTS: dict[str, Callable[[], nn.Module]] = {
    "no context": nn.Identity,
    "self-attention": lambda: SelfAttention(CHANNELS),
    "EM attention": lambda: EMAUnit(CHANNELS, num_bases=NUM_BASES),
    "EM attention, detached": lambda: EMAUnit(CHANNELS, num_bases=NUM_BASES, grad_iters=0),
}
"""The four context layers compared. "detached" is the gradient of the code published with the paper."""


class DemoNetwork(nn.Module):
    """Images [B, 3, H, W] in 0 to 1 to logits [B, num_classes, H, W] at the same size, through features at stride 4."""

    def __init__(self, context: str, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _convolution(3, CHANNELS // 2, 2),
            _convolution(CHANNELS // 2, CHANNELS, 2),
            _convolution(CHANNELS, CHANNELS),
            _convolution(CHANNELS, CHANNELS),
        )
        self.head = nn.Sequential(_convolution(CHANNELS, CHANNELS), nn.Conv2d(CHANNELS, num_classes, 1))
        self.context = CONTEXTS[context]()

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, num_classes, H, W] of `images` [B, 3, H, W]."""
        logits = self.head(self.context(self.features(images - 0.5)))
        return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)


def receptive_field(network: DemoNetwork) -> int:
    """Edge length in pixels of the square that decides one output pixel when the context layer is taken out."""
    field, stride = 1, 1
    for module in (*network.features.modules(), *network.head.modules()):
        if isinstance(module, nn.Conv2d):
            field += (module.kernel_size[0] - 1) * stride
            stride *= module.stride[0]
    # the last bilinear interpolation mixes two neighbouring cells
    return field + stride


def _convolution(channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
