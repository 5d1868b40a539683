"""What the networks are made of: a convolution with norm, and what every backbone is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection

from torch import Tensor, nn

NormLayer = Callable[[int], nn.Module]
"""Called with a number of channels, makes a norm."""


class Backbone(nn.Module, ABC):
    """Images [B, 3, H, W] to the features of the last two stages.

    `channels` holds their numbers of channels. The last stage is at the output stride; the one before it, which an
    auxiliary head reads, is at the same or a finer one.
    """

    channels: tuple[int, int]

    @abstractmethod
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, channels[0], H', W'] and [B, channels[1], H'', W'']."""


class ConvNormReLU(nn.Module):
    """3x3 convolution without bias, norm, ReLU: [B, in_channels, H, W] to [B, channels, H / stride, W / stride]."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1, *, norm_layer: NormLayer) -> None:
        super().__init__()
        self.conv = convolution(in_channels, channels, 3, stride)
        self.norm = norm_layer(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """relu(norm(conv(x)))."""
        return self.relu(self.norm(self.conv(x)))


def convolution(in_channels: int, channels: int, size: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """A convolution in front of a norm: no bias, padded so that only the stride changes the size, Kaiming start."""
    conv = nn.Conv2d(in_channels, channels, size, stride, dilation * (size // 2), dilation, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def check_stride(name: str, output_stride: int, offered: Collection[int]) -> None:
    """Whether the backbone `name` has `output_stride` among those `offered`."""
    if output_stride not in offered:
        raise ValueError(f"output_stride is {output_stride}: {name} offers {', '.join(map(str, offered))}")
