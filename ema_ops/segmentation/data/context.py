"""PASCAL Context from disk: VOC 2010 with every pixel labelled."""

from __future__ import annotations

from pathlib import Path

from typing_extensions import Unpack

from .dataset import Common, SegmentationDataset
from .folders import pascal_root, read_list
from .labels import IGNORE, Labels

_NAMES = """
aeroplane bag bed bedclothes bench bicycle bird boat book bottle building bus cabinet car cat ceiling chair cloth
computer cow cup curtain dog door fence floor flower food grass ground horse keyboard light motorbike mountain mouse
person plate platform pottedplant road rock sheep shelves sidewalk sign sky snow sofa table track train tree truck
tvmonitor wall water window wood
"""
CONTEXT_CLASSES = tuple(_NAMES.split())
"""The 59 most frequent of the 459 classes, in the order of their numbers there, which is that of the alphabet."""

_MASKS = "SegmentationClassContext"


class ContextSegmentation(SegmentationDataset):
    """PASCAL Context with its 59 usual classes, as PNG masks.

        root/JPEGImages/NAME.jpg
        root/SegmentationClassContext/NAME.png            grey: 0 = background, 1 to 59 = the classes
        root/ImageSets/SegmentationContext/SPLIT.txt      one NAME a line

    root is the folder `VOCdevkit/VOC2010`, or one that holds it. The masks are those that the widespread conversion
    of `trainval_merged.json` (the release "PASCAL in Detail") writes.

    Args:
        root: the folder that holds the three folders above.
        split: which list, "train" or "val".
        background: whether the background is a class, label 0 of 60; otherwise it is ignored, and there are 59.
        transform, check_files: as in `SegmentationDataset`.

    Raises:
        FileNotFoundError: a folder, the list, a listed picture or its mask is missing.
        DataError: the list is empty.

    Reading raises as `SegmentationDataset` says.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        background: bool = True,
        **common: Unpack[Common],
    ):
        self.root = pascal_root(
            root,
            "VOC2010",
            _MASKS,
            "SegmentationContext",
            holds=_MASKS,
            layout="the PASCAL Context layout (that is VOCdevkit/VOC2010 with the masks and lists of PASCAL Context)",
        )
        names = read_list(self.root / "ImageSets" / "SegmentationContext" / f"{split}.txt")
        if background:
            labels = Labels(("background", *CONTEXT_CLASSES))
        else:
            values = {0: IGNORE, **{label + 1: label for label in range(len(CONTEXT_CLASSES))}}
            labels = Labels(CONTEXT_CLASSES, values)
        super().__init__(names, labels, **common)

    def image_path(self, name: str) -> Path:
        """Where the picture called `name` lies."""
        return self.root / "JPEGImages" / f"{name}.jpg"

    def mask_path(self, name: str) -> Path:
        """Where the mask of the picture called `name` lies."""
        return self.root / _MASKS / f"{name}.png"
