"""Data sets of pictures and label masks on disk."""

from .palette import voc_palette
from .voc import IGNORE, VOC_CLASSES, VOCSegmentation

__all__ = ["IGNORE", "VOC_CLASSES", "VOCSegmentation", "voc_palette"]
