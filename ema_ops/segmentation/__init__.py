"""Semantic segmentation with EM attention. Needs the extra `ema_ops[segmentation]`."""

from .data import VOCSegmentation, voc_palette
from .models import EMANet

__all__ = ["EMANet", "VOCSegmentation", "voc_palette"]
