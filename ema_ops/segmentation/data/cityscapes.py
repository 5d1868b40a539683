"""Cityscapes from disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from typing_extensions import Unpack

from .dataset import Common, SegmentationDataset
from .errors import DataError
from .folders import file_names, find_root, require_folders
from .labels import IGNORE, Labels
from .palette import palette_of

_CLASSES = {
    "road": (7, (128, 64, 128)),
    "sidewalk": (8, (244, 35, 232)),
    "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)),
    "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)),
    "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}
"""Number in labelIds and colour of each judged class."""

CITYSCAPES_CLASSES = tuple(_CLASSES)
"""The 19 classes that are judged; class i has train id i."""

_NUM_IDS = 34
_IMAGE, _IDS, _TRAIN_IDS = "_leftImg8bit.png", "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"


class CityscapesSegmentation(SegmentationDataset):
    """Cityscapes with its 19 judged classes.

        root/leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png
        root/gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png         or, where these are not, ..._labelTrainIds.png

    Args:
        root: the folder that holds the two folders above.
        split: "train", "val" or "test" (whose masks are empty: everything is ignored).
        transform, check_files: as in `SegmentationDataset`.

    Raises:
        FileNotFoundError: a folder, or a partner of a picture or a mask is missing.
        DataError: there is no picture.

    Reading raises as `SegmentationDataset` says.
    """

    def __init__(self, root: str | Path, split: str = "train", **common: Unpack[Common]):
        root = find_root(root, ("cityscapes",), "leftImg8bit")
        layout = "the Cityscapes layout (leftImg8bit/SPLIT/CITY and gtFine/SPLIT/CITY)"
        require_folders(root, (f"leftImg8bit/{split}", f"gtFine/{split}"), layout)
        self._images, self._masks = root / "leftImg8bit" / split, root / "gtFine" / split
        names = _names(self._images, _IMAGE)
        if not names:
            raise DataError(f"folder {self._images} has no pictures: expected files CITY/NAME{_IMAGE}")
        with_ids = _names(self._masks, _IDS)
        self._ending = _IDS if with_ids else _TRAIN_IDS
        values = dict.fromkeys(range(_NUM_IDS), IGNORE) if with_ids else {}
        for label, (number, _) in enumerate(_CLASSES.values()):
            values[number if with_ids else label] = label
        colours = palette_of([colour for _, colour in _CLASSES.values()])
        labels = Labels(CITYSCAPES_CLASSES, values, colours)
        super().__init__(names, labels, **common)

    def image_path(self, name: str) -> Path:
        """Where the picture called `name` lies."""
        return self._images / _city(name) / f"{name}{_IMAGE}"

    def mask_path(self, name: str) -> Path:
        """Where the mask of the picture called `name` lies."""
        return self._masks / _city(name) / f"{name}{self._ending}"

    def missing_files(self) -> Iterator[str]:
        """What is missing or has no partner, a sentence each; no file is opened for it."""
        yield from super().missing_files()
        for name in sorted(set(_names(self._masks, self._ending)) - set(self.names)):
            yield f"mask {self.mask_path(name)} has no picture: expected {self.image_path(name)}"


def _names(folder: Path, ending: str) -> list[str]:
    """NAME of every file CITY/NAME`ending` in `folder`."""
    cities = [folder / city for city in file_names(folder) if (folder / city).is_dir()]
    files = (file for city in cities for file in file_names(city))
    return [file.removesuffix(ending) for file in files if file.endswith(ending)]


def _city(name: str) -> str:
    """ "aachen" of "aachen_000000_000019"."""
    return name.partition("_")[0]
