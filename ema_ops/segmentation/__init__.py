"""Semantic segmentation with EM attention. Needs the extra `ema_ops[segmentation]`."""

from .data import VOCSegmentation, voc_palette

__all__ = ["VOCSegmentation", "voc_palette"]
