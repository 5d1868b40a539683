"""The backbones by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ...problem import check_count
from .blocks import Backbone, NormLayer
from .resnet import DEPTHS, ResNet
from .small import SmallBackbone
from .timm_backbone import TimmBackbone

TIMM = "timm:"


def make_backbone(
    name: str,
    output_stride: int,
    *,
    multi_grid: Sequence[int] | None = None,
    stem_channels: int | None = None,
    norm_layer: NormLayer = nn.BatchNorm2d,
) -> Backbone:
    """The backbone `name`; `multi_grid` and `stem_channels` are options of a `ResNet` and None for all others.

    Raises:
        ValueError, TypeError: an unknown name, or an option that does not fit the backbone.
        ImportError: a timm backbone without timm.
    """
    if not isinstance(name, str) or not (name in DEPTHS or name == "small" or name.startswith(TIMM)):
        names = ", ".join(map(repr, (*DEPTHS, "small")))
        raise ValueError(f"backbone is {name!r}: expected {names} or '{TIMM}NAME', NAME a model of timm")
    check_count("output_stride", output_stride)
    options = {"multi_grid": multi_grid, "stem_channels": stem_channels}
    given: dict[str, Any] = {option: value for option, value in options.items() if value is not None}
    if name in DEPTHS:
        return ResNet(name, output_stride, norm_layer=norm_layer, **given)
    for option, value in given.items():
        raise ValueError(f"{option} is {value!r} with backbone {name!r}: only a ResNet has one, expected None")
    if name == "small":
        return SmallBackbone(output_stride, norm_layer=norm_layer)
    return TimmBackbone(name.removeprefix(TIMM), output_stride, norm_layer=norm_layer)
