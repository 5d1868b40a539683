"""A backbone for CPUs: three or four convolutions."""

from __future__ import annotations

from torch import Tensor, nn

from .blocks import Backbone, ConvNormReLU, NormLayer, check_stride

STRIDES = {4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 2, 2)}
"""Strides of the convolutions for every output stride."""

CHANNELS = (32, 64, 64, 64)


class SmallBackbone(Backbone):
    """3x3 convolutions with norm and ReLU, trained from scratch in minutes.

    At output stride 4 the whole network sees 35 pixels without its context module (43 with a concatenating head), so
    that a task which needs more than that shows what the context module does.
    """

    def __init__(self, output_stride: int, *, norm_layer: NormLayer = nn.BatchNorm2d) -> None:
        super().__init__()
        check_stride("small", output_stride, STRIDES)
        strides = STRIDES[output_stride]
        channels = (3, *CHANNELS[: len(strides)])
        self.stages = nn.Sequential(
            *(
                ConvNormReLU(before, after, stride, norm_layer=norm_layer)
                for before, after, stride in zip(channels, channels[1:], strides, strict=False)
            )
        )
        self.channels = (channels[-2], channels[-1])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the last two convolutions."""
        before_last = self.stages[:-1](images)
        return before_last, self.stages[-1](before_last)
