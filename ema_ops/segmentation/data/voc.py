"""PASCAL VOC segmentation from disk: pictures, palette masks and lists of names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .pictures import open_picture

IGNORE = 255
"""The label of pixels that belong to no class (VOC draws it around objects); not trained on, not judged."""

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


class VOCSegmentation(Dataset[tuple[Tensor, Tensor]]):
    """Pictures and label masks in the folder layout of PASCAL VOC.

        root/JPEGImages/NAME.jpg
        root/SegmentationClass/NAME.png              palette or grey, one label a pixel, 255 = ignore
        root/ImageSets/Segmentation/SPLIT.txt        one NAME a line

    For VOC 2012 itself, root is the folder `VOCdevkit/VOC2012`. An item is (image, mask): float32 [3, H, W] in
    0 to 1, and int64 [H, W] with labels 0 to num_classes - 1 or 255.

    Args:
        root: the folder that holds the three folders above.
        split: which list, "train", "val" or any other file in ImageSets/Segmentation.
        num_classes: how many labels there are, background included.
        transform: called with (image, mask), returns what the item shall be.

    Raises:
        FileNotFoundError: a folder, the list, a listed picture or its mask is missing.
        ValueError: the list is empty; at reading, a mask is no label picture, has a label out of range, or is not as
            large as its picture.
        OSError: at reading, a file is truncated or no picture.

    Every error names the file.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        num_classes: int = len(VOC_CLASSES),
        transform: Callable[[Tensor, Tensor], Any] | None = None,
    ):
        self.root = Path(root)
        self.num_classes = num_classes
        self.transform = transform
        for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
            if not (self.root / folder).is_dir():
                raise FileNotFoundError(
                    f"folder {self.root / folder} is missing: expected the PASCAL VOC layout in {self.root} "
                    "(for VOC 2012 that is VOCdevkit/VOC2012)"
                )
        self.names = self._read_names(self.root / "ImageSets" / "Segmentation" / f"{split}.txt")
        for name in self.names:
            if not self.image_path(name).is_file():
                raise FileNotFoundError(f"picture {self.image_path(name)} is missing: {split}.txt lists it")
            if not self.mask_path(name).is_file():
                raise FileNotFoundError(f"mask {self.mask_path(name)} is missing: expected one beside each picture")

    def image_path(self, name: str) -> Path:
        """Where the picture called `name` lies."""
        return self.root / "JPEGImages" / f"{name}.jpg"

    def mask_path(self, name: str) -> Path:
        """Where the mask of the picture called `name` lies."""
        return self.root / "SegmentationClass" / f"{name}.png"

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Any:
        name = self.names[index]
        image = np.asarray(open_picture(self.image_path(name)).convert("RGB"))
        mask = self._read_mask(self.mask_path(name))
        if mask.shape != image.shape[:2]:
            raise ValueError(
                f"mask {self.mask_path(name)} is {mask.shape[1]} x {mask.shape[0]}: expected "
                f"{image.shape[1]} x {image.shape[0]} as its picture {self.image_path(name)}"
            )
        item = (
            torch.from_numpy(image.transpose(2, 0, 1).copy()).float().div_(255),
            torch.from_numpy(mask.astype(np.int64)),
        )
        return item if self.transform is None else self.transform(*item)

    def _read_mask(self, path: Path) -> np.ndarray:
        picture = open_picture(path)
        if picture.mode not in ("P", "L"):
            raise ValueError(f"mask {path} has mode {picture.mode}: expected a palette or grey picture of labels")
        mask = np.asarray(picture)
        wrong = mask[(mask >= self.num_classes) & (mask != IGNORE)]
        if wrong.size:
            raise ValueError(
                f"mask {path} has label {wrong[0]}: expected 0 to {self.num_classes - 1}, or {IGNORE} for ignore"
            )
        return mask

    @staticmethod
    def _read_names(path: Path) -> list[str]:
        if not path.is_file():
            raise FileNotFoundError(f"list {path} is missing: expected one picture name a line")
        names = path.read_text(encoding="utf-8").split()
        if not names:
            raise ValueError(f"list {path} is empty: expected one picture name a line")
        return names
