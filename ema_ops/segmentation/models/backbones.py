"""The backbones by name."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from ...problem import check_count
from .blocks import Backbone, NormLayer
from .resnet import DEPTHS, STAGES, ResNet
from .small import STRIDES, SmallBackbone

TIMM = "timm:"


def make_backbone(
    name: str,
    output_stride: int,
    *,
    multi_grid: Sequence[int] | None,
    stem_channels: int | None,
    norm_layer: NormLayer,
) -> Backbone:
    """The backbone `name`; `multi_grid` and `stem_channels` are those of a ResNet and None for all others.

    Raises:
        ValueError, TypeError: an unknown name, or an option that does not fit the backbone.
        ImportError: a timm backbone without timm.
    """
    if not isinstance(name, str) or not (name in DEPTHS or name == "small" or name.startswith(TIMM)):
        names = ", ".join(map(repr, (*DEPTHS, "small")))
        raise ValueError(f"backbone is {name!r}: expected {names} or '{TIMM}NAME', NAME a model of timm")
    if name in DEPTHS:
        _check_stride(name, output_stride, STAGES)
        if multi_grid is None or stem_channels is None:
            raise TypeError(f"multi_grid is {multi_grid} and stem_channels {stem_channels}: {name} needs both")
        _check_multi_grid(multi_grid, DEPTHS[name][3])
        if check_count("stem_channels", stem_channels) % 2:
            raise ValueError(f"stem_channels is {stem_channels}: expected an even number")
        return ResNet(name, output_stride, stem_channels=stem_channels, multi_grid=multi_grid, norm_layer=norm_layer)
    for option, value in (("multi_grid", multi_grid), ("stem_channels", stem_channels)):
        if value is not None:
            raise ValueError(f"{option} is {value!r} with backbone {name!r}: only a ResNet has one, expected None")
    if name == "small":
        _check_stride(name, output_stride, STRIDES)
        return SmallBackbone(output_stride, norm_layer=norm_layer)
    from .timm_backbone import TimmBackbone

    return TimmBackbone(name.removeprefix(TIMM), output_stride, norm_layer=norm_layer)


def _check_stride(name: str, output_stride: Any, offered: Collection[int]) -> None:
    if isinstance(output_stride, bool) or output_stride not in offered:
        raise ValueError(f"output_stride is {output_stride!r}: {name} offers {', '.join(map(str, offered))}")


def _check_multi_grid(multi_grid: Sequence[int], blocks: int) -> None:
    if len(multi_grid) != blocks or not all(type(factor) is int and factor >= 1 for factor in multi_grid):
        raise ValueError(f"multi_grid is {multi_grid!r}: expected {blocks} whole numbers of at least 1")
