"""ResNet-50, -101 and -152 with a deep stem and dilated last stages.

He et al., CVPR 2016; three 3x3 convolutions in place of the 7x7 one; dilation in place of stride as in Chen et al.,
"Rethinking Atrous Convolution", 2017. The state keys are those of mmsegmentation's ResNetV1c.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ...problem import check_count
from .blocks import Backbone, NormLayer, check_stride, convolution

DEPTHS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}
"""Number of blocks in each stage."""

STAGES = {8: ((1, 2, 1, 1), (1, 1, 2, 4)), 16: ((1, 2, 2, 1), (1, 1, 1, 2))}
"""Strides and dilations of the four stages for every output stride."""

EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution around a shortcut; the 3x3 one carries stride and dilation."""

    def __init__(self, in_channels: int, width: int, stride: int, dilation: int, norm_layer: NormLayer) -> None:
        super().__init__()
        channels = width * EXPANSION
        self.conv1, self.bn1 = convolution(in_channels, width, 1), norm_layer(width)
        self.conv2, self.bn2 = convolution(width, width, 3, stride, dilation), norm_layer(width)
        self.conv3, self.bn3 = convolution(width, channels, 1), norm_layer(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(convolution(in_channels, channels, 1, stride), norm_layer(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] to [B, 4 width, H / stride, W / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNet(Backbone):
    """The network up to its last stage.

    Args:
        name: one of `DEPTHS`.
        output_stride: 8 or 16.
        stem_channels: channels after the stem, twice as many as inside it: 128 in the official network, 64 in
            mmsegmentation's.
        multi_grid: factors of the last stage's dilation, one for each of its blocks but the first, which is dilated
            half as much as its stage (in a dilated stage 3 as well).
        norm_layer: makes every norm.

    Raises:
        ValueError, TypeError: an option does not fit.
    """

    def __init__(
        self,
        name: str,
        output_stride: int = 8,
        *,
        stem_channels: int = 128,
        multi_grid: Sequence[int] = (1, 2, 4),
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        check_stride(name, output_stride, STAGES)
        _check_multi_grid(multi_grid, DEPTHS[name][3])
        if check_count("stem_channels", stem_channels) % 2:
            raise ValueError(f"stem_channels is {stem_channels}: expected an even number")
        self.stem = _stem(stem_channels, norm_layer)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        stages, channels = [], stem_channels
        for index, (blocks, stride, dilation) in enumerate(zip(DEPTHS[name], *STAGES[output_stride], strict=True)):
            grid = tuple(multi_grid) if index == 3 else (1,) * blocks
            dilations = (max(dilation // 2, 1) * grid[0], *(dilation * factor for factor in grid[1:]))
            width = 64 * 2**index
            stages.append(_stage(channels, width, stride, dilations, norm_layer))
            channels = width * EXPANSION
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.channels = (channels // 2, channels)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, 1024, H', W'] of stage 3 and [B, 2048, H', W'] of stage 4, H' = ceil(H / output_stride)."""
        x = self.layer2(self.layer1(self.maxpool(self.stem(images))))
        stage3 = self.layer3(x)
        return stage3, self.layer4(stage3)


def _stem(channels: int, norm_layer: NormLayer) -> nn.Sequential:
    """Three 3x3 convolutions, each with norm and ReLU; the first has stride 2."""
    layers: list[nn.Module] = []
    sizes = (3, channels // 2, channels // 2, channels)
    for before, after, stride in zip(sizes, sizes[1:], (2, 1, 1), strict=False):
        layers += [convolution(before, after, 3, stride), norm_layer(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _stage(in_channels: int, width: int, stride: int, dilations: Sequence[int], norm_layer: NormLayer) -> nn.Sequential:
    """One block for each of `dilations`; the first has the stride."""
    first = Bottleneck(in_channels, width, stride, dilations[0], norm_layer)
    rest = (Bottleneck(width * EXPANSION, width, 1, dilation, norm_layer) for dilation in dilations[1:])
    return nn.Sequential(first, *rest)


def _check_multi_grid(multi_grid: Sequence[int], blocks: int) -> None:
    known = isinstance(multi_grid, (list, tuple)) and all(type(factor) is int and factor >= 1 for factor in multi_grid)
    if not known or len(multi_grid) != blocks:
        raise ValueError(f"multi_grid is {multi_grid!r}: expected {blocks} whole numbers of at least 1")
