"""`EMANet`: a backbone, the EMA unit, and the head of the paper or of mmsegmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...layers import EMAUnit
from ...problem import check_count, check_floating
from .backbones import make_backbone
from .blocks import ConvNormReLU, NormLayer
from .resnet import DEPTHS


class Head(NamedTuple):
    """What differs between the two published networks around the unit."""

    concatenate: bool
    auxiliary: bool
    align_corners: bool
    multi_grid: tuple[int, ...]
    stem_channels: int


HEADS = {
    "official": Head(False, False, True, (1, 2, 4), 128),
    "mmsegmentation": Head(True, True, False, (1, 1, 1), 64),
}


# of the process that runs the network, so a checkpoint does not keep them
_NOT_KEPT = ("average_group", "backend")


class EMANet(nn.Module):
    """Semantic segmentation with EM attention: images [B, 3, H, W] to logits [B, num_classes, H, W].

    Li et al., ICCV 2019, section 4. backbone -> reduce (3x3) -> unit -> bottleneck (3x3) -> classifier (1x1) ->
    bilinear interpolation to the images' size. `head="mmsegmentation"` puts the backbone's features beside the
    bottleneck's and mixes both with another 3x3 convolution, and has an auxiliary classifier on stage 3.

    Only the architecture follows the head: the unit has the options of `EMAttention`, with the exact gradient, unless
    `layer_options` holds one of `ema_ops.PRESETS`.

    Convolutions start as in the two published codes, the backbone's with Kaiming normal numbers.

    `options` holds the arguments that make the same network again, as plain values; defaults that depend on others
    are filled in. `norm_layer`, `average_group` and `backend` are not among them: they may differ on another machine.

    Args:
        num_classes: classes, and channels of the logits.
        backbone: "resnet50", "resnet101", "resnet152", "small" (for CPUs) or "timm:NAME".
        output_stride: pixels per cell of the features: 8 or 16 for a ResNet, 4, 8 or 16 for "small".
        num_bases, num_iters: K and T of the unit.
        head: "official" or "mmsegmentation".
        channels: C of the unit.
        bottleneck_channels: channels in front of the classifier; None means half of `channels`.
        dropout: probability that a channel in front of a classifier is dropped in training.
        auxiliary: have an auxiliary classifier on stage 3; None means as `head`.
        align_corners: of the last interpolation; None means as `head` (official: True).
        multi_grid: factors of the dilations in a ResNet's last stage; None means as `head` (official: 1, 2, 4).
        stem_channels: channels after a ResNet's stem; None means as `head` (official: 128, mmsegmentation: 64).
        norm_layer: called with a number of channels, makes every norm.
        **layer_options: any other option of `EMAUnit`.

    Raises:
        ValueError, TypeError: an option does not fit.
        ImportError: a timm backbone without timm.
    """

    def __init__(
        self,
        num_classes: int = 21,
        backbone: str = "resnet50",
        output_stride: int = 8,
        num_bases: int = 64,
        num_iters: int = 3,
        head: str = "official",
        *,
        channels: int = 512,
        bottleneck_channels: int | None = None,
        dropout: float = 0.1,
        auxiliary: bool | None = None,
        align_corners: bool | None = None,
        multi_grid: Sequence[int] | None = None,
        stem_channels: int | None = None,
        norm_layer: NormLayer = nn.BatchNorm2d,
        **layer_options: Any,
    ) -> None:
        super().__init__()
        if not isinstance(head, str) or head not in HEADS:
            raise ValueError(f"head is {head!r}: expected one of {', '.join(map(repr, HEADS))}")
        if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout!r}: expected a number from 0 to below 1")
        published = HEADS[head]
        num_classes = check_count("num_classes", num_classes)
        channels = check_count("channels", channels)
        if bottleneck_channels is None:
            bottleneck_channels = max(channels // 2, 1)
        check_count("bottleneck_channels", bottleneck_channels)
        if isinstance(backbone, str) and backbone in DEPTHS:
            multi_grid = published.multi_grid if multi_grid is None else multi_grid
            stem_channels = published.stem_channels if stem_channels is None else stem_channels
        self.backbone = make_backbone(
            backbone, output_stride, multi_grid=multi_grid, stem_channels=stem_channels, norm_layer=norm_layer
        )
        self.options: dict[str, Any] = {
            "num_classes": num_classes,
            "backbone": backbone,
            "output_stride": output_stride,
            "num_bases": num_bases,
            "num_iters": num_iters,
            "head": head,
            "channels": channels,
            "bottleneck_channels": bottleneck_channels,
            "dropout": float(dropout),
            "auxiliary": _flag("auxiliary", published.auxiliary if auxiliary is None else auxiliary),
            "align_corners": _flag(
                "align_corners", published.align_corners if align_corners is None else align_corners
            ),
            "multi_grid": None if multi_grid is None else list(multi_grid),
            "stem_channels": stem_channels,
            **{name: value for name, value in layer_options.items() if name not in _NOT_KEPT},
        }

        stage3_channels, in_channels = self.backbone.channels
        self.reduce = ConvNormReLU(in_channels, channels, norm_layer=norm_layer)
        self.unit: nn.Module = EMAUnit(channels, num_bases, num_iters, norm_layer=norm_layer, **layer_options)
        self.bottleneck = ConvNormReLU(channels, bottleneck_channels, norm_layer=norm_layer)
        self.concat: nn.Module | None = None
        if published.concatenate:
            self.concat = ConvNormReLU(in_channels + bottleneck_channels, bottleneck_channels, norm_layer=norm_layer)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(bottleneck_channels, num_classes, 1)
        self.auxiliary: nn.Module | None = None
        self.auxiliary_classifier: nn.Conv2d | None = None
        if self.options["auxiliary"]:
            auxiliary_channels = max(stage3_channels // 4, 1)
            self.auxiliary = ConvNormReLU(stage3_channels, auxiliary_channels, norm_layer=norm_layer)
            self.auxiliary_classifier = nn.Conv2d(auxiliary_channels, num_classes, 1)
        self._reset_head()

    def forward(self, images: Tensor, return_auxiliary: bool = False) -> Tensor | tuple[Tensor, Tensor | None]:
        """Logits of normalised `images`.

        Args:
            images: [B, 3, H, W], floating, minus the mean and over the standard deviation of ImageNet.
            return_auxiliary: also return the auxiliary logits, None where the network has no auxiliary classifier.

        Returns:
            Logits [B, num_classes, H, W] before the softmax, in the dtype of the network's weights, float32 at least;
            with return_auxiliary the auxiliary ones [B, num_classes, H, W] or None as well.

        Raises:
            ValueError, TypeError: `images` is not such a tensor.
        """
        check_floating("images", images)
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images has shape {list(images.shape)}: expected [B, 3, H, W]")
        size = images.shape[-2:]
        stage3, features = self.backbone(images)
        logits = self._resize(self.classify(features), size)
        if not return_auxiliary:
            return logits
        if self.auxiliary is None or self.auxiliary_classifier is None:
            return logits, None
        auxiliary = self.auxiliary_classifier(self.dropout(self.auxiliary(stage3)))
        return logits, self._resize(auxiliary, size)

    def classify(self, features: Tensor) -> Tensor:
        """Logits [B, num_classes, H', W'] of the backbone's last `features` [B, C, H', W']."""
        x = self.bottleneck(self.unit(self.reduce(features)))
        if self.concat is not None:
            x = self.concat(torch.cat([features, x], dim=1))
        return self.classifier(self.dropout(x))

    def _reset_head(self) -> None:
        """The published starts around the unit: torch's own (official), or Kaiming and a nearly flat classifier."""
        if self.options["head"] == "official":
            for part in (self.reduce, self.bottleneck):
                part.conv.reset_parameters()
            return
        for classifier in (self.classifier, self.auxiliary_classifier):
            if classifier is not None:
                nn.init.normal_(classifier.weight, std=0.01)
                nn.init.zeros_(classifier.get_parameter("bias"))

    def _resize(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        # the loss and the argmax need float32, also where the convolutions ran in 16 bits
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=self.options["align_corners"])


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}): expected True, False or None")
    return value
