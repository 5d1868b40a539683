"""PASCAL VOC segmentation from disk: pictures, palette masks and lists of names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .dataset import SegmentationDataset, Transform
from .folders import find_root, read_list, require_folders
from .labels import Labels, class_names

VOC_CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


class VOCSegmentation(SegmentationDataset):
    """Pictures and label masks in the folder layout of PASCAL VOC.

        root/JPEGImages/NAME.jpg
        root/SegmentationClass/NAME.png              palette or grey, one label a pixel, 255 = ignore
        root/ImageSets/Segmentation/SPLIT.txt        one NAME a line

    For VOC 2012 itself, root is the folder `VOCdevkit/VOC2012`, or one that holds it.

    Args:
        root: the folder that holds the three folders above.
        split: which list, "train", "val" or any other file in ImageSets/Segmentation.
        classes: names of the classes, background included; the 21 of VOC by default.
        num_classes: how many there are, if they have no names.
        transform: called with (image, mask), returns what the item shall be.
        check_files: whether a missing picture or mask is an error now, and not when it is read.

    Raises:
        FileNotFoundError: a folder, the list, a listed picture or its mask is missing.
        ValueError: the list is empty.

    Reading raises as `SegmentationDataset` says.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        classes: Sequence[str] | None = None,
        num_classes: int | None = None,
        transform: Transform | None = None,
        check_files: bool = True,
    ):
        self.root = find_root(root, ("VOC2012", "VOCdevkit/VOC2012"), "JPEGImages")
        require_folders(
            self.root,
            ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"),
            "the PASCAL VOC layout (for VOC 2012 that is VOCdevkit/VOC2012)",
        )
        names = read_list(self.root / "ImageSets" / "Segmentation" / f"{split}.txt")
        labels = Labels(class_names(classes, num_classes, VOC_CLASSES))
        super().__init__(names, labels, transform=transform, check_files=check_files)

    def image_path(self, name: str) -> Path:
        """Where the picture called `name` lies."""
        return self.root / "JPEGImages" / f"{name}.jpg"

    def mask_path(self, name: str) -> Path:
        """Where the mask of the picture called `name` lies."""
        return self.root / "SegmentationClass" / f"{name}.png"
