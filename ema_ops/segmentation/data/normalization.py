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
    constants = torch.tensor((MEAN, STD), dtype=image.dtype)
    # a GPU may still be busy with the pictures before, and only pinned memory is sent without waiting for it
    constants = constants.pin_memory() if image.is_cuda else constants
    mean, std = constants.to(image.device, non_blocking=True)[:, :, None, None]
    return image.sub_(mean).div_(std)
