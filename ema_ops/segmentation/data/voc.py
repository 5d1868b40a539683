"""PASCAL VOC segmentation from disk: pictures, palette masks and lists of names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from typing_extensions import Unpack

from .dataset import Common, SegmentationDataset
from .folders import Listing, pascal_root, read_list
from .labels import Labels, class_names
from .masks import read_mask_matlab
from .sbd import MATLAB_FIELDS, sbd_root, trainaug_names

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


@dataclass(frozen=True)
class _ExtraMasks:
    """The names whose masks do not lie in SegmentationClass but in `folder`, with another `ending`."""

    names: frozenset[str]
    folder: Path
    ending: str


class VOCSegmentation(SegmentationDataset):
    """Pictures and label masks in the folder layout of PASCAL VOC.

        root/JPEGImages/NAME.jpg
        root/SegmentationClass/NAME.png              palette or grey, one label a pixel, 255 = ignore
        root/ImageSets/Segmentation/SPLIT.txt        one NAME a line

    For VOC 2012 itself, root is the folder `VOCdevkit/VOC2012`, or one that holds it. Its longer training list
    "trainaug", with the masks of SBD, is read in either of two ways:

        root/SegmentationClassAug/NAME.png           SBD's masks as PNG; what is not there comes from SegmentationClass
        root/ImageSets/Segmentation/trainaug.txt     or SegmentationAug/train_aug.txt with paths of picture and mask

    or, with the option `sbd`, straight from the release of SBD:

        sbd/cls/NAME.mat                             used where SegmentationClass has no mask
        sbd/train.txt, sbd/val.txt                   these and VOC's train without VOC's val

    Args:
        root: the folder that holds the three folders above.
        split: which list, "train", "val", "trainaug" or any other file in ImageSets/Segmentation.
        classes: names of the classes, background included; the 21 of VOC by default.
        num_classes: how many there are, if they have no names.
        sbd: the release of SBD, `benchmark_RELEASE/dataset` or a folder that holds it; only "trainaug" reads it.
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
        classes: Sequence[str] | None = None,
        num_classes: int | None = None,
        sbd: str | Path | None = None,
        **common: Unpack[Common],
    ):
        self.root = pascal_root(
            root,
            "VOC2012",
            "SegmentationClass",
            "Segmentation",
            holds="JPEGImages",
            layout="the PASCAL VOC layout (for VOC 2012 that is VOCdevkit/VOC2012)",
        )
        labels = Labels(class_names(classes, num_classes, VOC_CLASSES))
        names, self._extra = self._read_split(split, sbd)
        super().__init__(names, labels, **common)

    def image_path(self, name: str) -> Path:
        """Where the picture called `name` lies."""
        return self.root / "JPEGImages" / f"{name}.jpg"

    def mask_path(self, name: str) -> Path:
        """Where the mask of the picture called `name` lies."""
        if name in self._extra.names:
            return self._extra.folder / f"{name}{self._extra.ending}"
        return self.root / "SegmentationClass" / f"{name}.png"

    def read_stored(self, path: Path) -> np.ndarray:
        """The integers [H, W] in the mask `path`, before they are labels."""
        return read_mask_matlab(path, MATLAB_FIELDS) if path.suffix == ".mat" else super().read_stored(path)

    def _read_split(self, split: str, sbd: str | Path | None) -> tuple[list[str], _ExtraMasks]:
        """The names of `split`, and which of them have a mask of SBD."""
        there = Listing()
        if split == "trainaug" and sbd is not None:
            release = sbd_root(sbd)
            names = trainaug_names(release, self.root / "ImageSets" / "Segmentation")
            own = self.root / "SegmentationClass"
            extra = frozenset(name for name in names if own / f"{name}.png" not in there)
            return names, _ExtraMasks(extra, release / "cls", ".mat")
        names = [_name(line) for line in read_list(self._list(split))]
        folder = self.root / "SegmentationClassAug"
        extra = frozenset(name for name in names if "aug" in split and folder / f"{name}.png" in there)
        return names, _ExtraMasks(extra, folder, ".png")

    def _list(self, split: str) -> Path:
        lists = self.root / "ImageSets"
        usual = lists / "Segmentation" / f"{split}.txt"
        if split != "trainaug" or usual.is_file():
            return usual
        deeplab = lists / "SegmentationAug" / "train_aug.txt"
        if not deeplab.is_file():
            raise FileNotFoundError(
                f"list {usual} is missing: expected it and the folder SegmentationClassAug, or the option sbd with the "
                "release of SBD"
            )
        return deeplab


def _name(line: str) -> str:
    """NAME of a line "NAME", or "/JPEGImages/NAME.jpg /SegmentationClassAug/NAME.png"."""
    return Path(line.split()[0]).stem if "/" in line else line.strip()
