"""How far a network sees without its context module."""

from __future__ import annotations

from torch import nn

from .emanet import EMANet
from .timm_backbone import TimmBackbone


def receptive_field(network: EMANet) -> int:
    """Edge length in pixels of the square that decides one output pixel when `unit` is taken out.

    Raises:
        ValueError: the backbone is one of timm, whose convolutions may be connected in any way.
    """
    if isinstance(network.backbone, TimmBackbone):
        raise ValueError(f"backbone is 'timm:{network.backbone.name}': expected a ResNet or 'small'")
    field, stride = 1, 1
    for part in (network.backbone, network.reduce, network.bottleneck, network.concat):
        for name, module in part.named_modules() if part is not None else ():
            # the shortcut has the stride of the convolutions beside it, and sees less than they
            if isinstance(module, (nn.Conv2d, nn.MaxPool2d)) and "downsample" not in name:
                size, step, dilation = (_one(getattr(module, key)) for key in ("kernel_size", "stride", "dilation"))
                field += (size - 1) * dilation * stride
                stride *= step
    # the last bilinear interpolation mixes two neighbouring cells
    return field + stride


def _one(size: int | tuple[int, ...]) -> int:
    return size if isinstance(size, int) else size[0]
