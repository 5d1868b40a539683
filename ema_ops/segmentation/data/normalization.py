"""The mean and spread of ImageNet's colours, with which backbones are trained."""

from __future__ import annotations

import torch
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of red, green and blue in 0 to 1, over ImageNet (torchvision's figures)."""


def normalize(image: Tensor) -> Tensor:
    """`image`, float [..., 3, H, W] in 0 to 1, minus `MEAN`, over `STD`."""
    return normalize_(image.clone())


def normalize_(image: Tensor) -> Tensor:
    """`normalize` in place; returns `image`."""
    # made on the CPU and sent without waiting: the device may still be busy with the pictures before
    mean, std = (
        torch.tensor(values, dtype=image.dtype)[:, None, None].to(image.device, non_blocking=True)
        for values in (MEAN, STD)
    )
    return image.sub_(mean).div_(std)
