"""COCO-Stuff from disk: the 10 000 pictures of the paper, or the whole of COCO 2017."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from typing_extensions import Unpack

from .coco_stuff_classes import COCO_STUFF_CLASSES, NUMBERED_CLASSES
from .dataset import Common, SegmentationDataset
from .errors import DataError
from .folders import file_names, first_folder, read_list, require_folders
from .labels import IGNORE, Labels
from .masks import read_mask_matlab

_MATLAB_FIELDS = ("S",)
_TRAIN_IDS = "_labelTrainIds.png"
_MASK_FOLDERS = ("annotations", "stuffthingmaps", "stuffthingmaps_trainval2017")
_NUMBERS = {NUMBERED_CLASSES.index(name) + 1: label for label, name in enumerate(COCO_STUFF_CLASSES)}
"""Label of each number from 1 to 182 that is used."""

_VALUES = {
    ("10k", ".mat"): {0: IGNORE, **_NUMBERS},
    ("10k", _TRAIN_IDS): {0: IGNORE, **{label + 1: label for label in _NUMBERS.values()}},
    ("164k", ".png"): {number - 1: label for number, label in _NUMBERS.items()},
    ("164k", _TRAIN_IDS): {label: label for label in _NUMBERS.values()},
}
"""What the masks of a version store, by the ending of their names."""


class COCOStuffSegmentation(SegmentationDataset):
    """COCO-Stuff with its 171 classes; unlabelled pixels are ignored.

    The 10k set as released (version 1.1; the numbers of 1.0 are others and are refused), splits "train" and "test":

        root/images/NAME.jpg
        root/annotations/NAME.mat                     S: 0 = unlabelled, 1 to 182
        root/imageLists/SPLIT.txt                     one NAME a line

    or as mmsegmentation converts it:

        root/images/SPLIT2014/NAME.jpg
        root/annotations/SPLIT2014/NAME_labelTrainIds.png       0 = unlabelled, 1 to 171

    The 164k set, COCO 2017, splits "train" and "val":

        root/images/SPLIT2017/NAME.jpg                or root/SPLIT2017
        root/annotations/SPLIT2017/NAME.png           or root/stuffthingmaps: 0 to 181, 255 = unlabelled
                                                      or NAME_labelTrainIds.png: 0 to 170, 255 = unlabelled

    Args:
        root: the folder that holds the folders above.
        split: "train", "test" or "val" as the set has them.
        version: "10k" or "164k"; by default "10k" where there is a folder `imageLists` or `images/train2014`.
        transform, check_files: as in `SegmentationDataset`.

    Raises:
        FileNotFoundError: a folder, the list, or a partner of a picture or a mask is missing.
        DataError: the list is empty, or there is no picture.
        ValueError: `version` is another.

    Reading raises as `SegmentationDataset` says.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        version: str | None = None,
        **common: Unpack[Common],
    ):
        root = Path(root)
        if version is None:
            version = "10k" if (root / "imageLists").is_dir() or (root / "images" / "train2014").is_dir() else "164k"
        if version not in ("10k", "164k"):
            raise ValueError(f"version is {version!r}: expected '10k' or '164k'")
        if version == "10k" and not (root / "annotations" / f"{split}2014").is_dir():
            require_folders(root, ("images", "annotations", "imageLists"), "the layout of COCO-Stuff 10k")
            self._images, self._masks, self._ending = root / "images", root / "annotations", ".mat"
            names = read_list(root / "imageLists" / f"{split}.txt")
        else:
            year = f"{split}2014" if version == "10k" else f"{split}2017"
            self._images = first_folder(root, (f"images/{year}", year))
            self._masks = first_folder(root, [f"{folder}/{year}" for folder in _MASK_FOLDERS])
            self._ending = ".png" if version == "164k" and _names(self._masks, ".png") else _TRAIN_IDS
            names = _names(self._images, ".jpg")
            if not names:
                raise DataError(f"folder {self._images} has no pictures: expected files NAME.jpg")
        labels = Labels(COCO_STUFF_CLASSES, _VALUES[version, self._ending])
        super().__init__(names, labels, **common)

    def image_path(self, name: str) -> Path:
        """Where the picture called `name` lies."""
        return self._images / f"{name}.jpg"

    def mask_path(self, name: str) -> Path:
        """Where the mask of the picture called `name` lies."""
        return self._masks / f"{name}{self._ending}"

    def read_stored(self, path: Path) -> np.ndarray:
        """The integers [H, W] in the mask `path`, before they are labels."""
        return read_mask_matlab(path, _MATLAB_FIELDS) if path.suffix == ".mat" else super().read_stored(path)

    def missing_files(self) -> Iterator[str]:
        """What is missing or has no partner, a sentence each; no file is opened for it."""
        yield from super().missing_files()
        if self._ending != ".mat":
            for name in sorted(set(_names(self._masks, self._ending)) - set(self.names)):
                yield f"mask {self.mask_path(name)} has no picture: expected {self.image_path(name)}"


def _names(folder: Path, ending: str) -> list[str]:
    """NAME of every file NAME`ending` in `folder`; converted masks have an ending of their own."""
    files = (file for file in file_names(folder) if ending == _TRAIN_IDS or not file.endswith(_TRAIN_IDS))
    return [file.removesuffix(ending) for file in files if file.endswith(ending)]
