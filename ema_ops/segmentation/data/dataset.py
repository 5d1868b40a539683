"""A data set of pictures and label masks that lie on disk; the base of all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from .errors import DataError
from .folders import Listing
from .labels import Labels
from .masks import read_mask_picture
from .pictures import read_rgb

Transform = Callable[[Tensor, Tensor], Any]


class Common(TypedDict, total=False):
    """The arguments that the data sets of all kinds hand on to `SegmentationDataset`."""

    transform: Transform | None
    check_files: bool


class SegmentationDataset(Dataset[tuple[Tensor, Tensor]], ABC):
    """Pictures and their label masks; holds names, reads files when asked for an item.

    An item is (image, mask): float32 [3, H, W] in 0 to 1, and int64 [H, W] with labels 0 to num_classes - 1 or
    `IGNORE`; or what `transform(image, mask)` makes of it. A subclass finds the names and says where the files of a
    name lie.

    Args:
        names: one for each picture, without folder and ending.
        labels: the classes, and what the masks store for them.
        transform: called with (image, mask), returns what the item shall be.
        check_files: whether a missing file, or one without its partner, is an error now, and not when it is read.

    Attributes:
        names: list of str.
        classes: tuple of the names of the classes.
        palette: colours of the labels, uint8 [256, 3].

    Raises:
        FileNotFoundError: a picture or a mask is missing.
        DataError: at reading, a mask is no label picture, has a label out of range, or is not as large as its
            picture.
        OSError: at reading, a file is truncated or no picture.

    Every error names the file.
    """

    def __init__(
        self,
        names: Sequence[str],
        labels: Labels,
        *,
        transform: Transform | None = None,
        check_files: bool = True,
    ):
        self.names = list(names)
        self.labels = labels
        self.transform = transform
        if check_files:
            missing = list(self.missing_files())
            if missing:
                more = f" (and {len(missing) - 1} more: `ema-ops data check` names them all)" if missing[1:] else ""
                raise FileNotFoundError(missing[0] + more)

    @abstractmethod
    def image_path(self, name: str) -> Path:
        """Where the picture called `name` lies."""

    @abstractmethod
    def mask_path(self, name: str) -> Path:
        """Where the mask of the picture called `name` lies."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each class; class i has label i."""
        return self.labels.classes

    @property
    def num_classes(self) -> int:
        """How many classes there are, the background included where it is one."""
        return len(self.classes)

    @property
    def palette(self) -> np.ndarray:
        """Colours of the labels, uint8 [256, 3]."""
        return self.labels.palette

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Any:
        picture, labels = self.read(index)
        image = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float().div_(255)
        mask = torch.from_numpy(labels).long()
        return (image, mask) if self.transform is None else self.transform(image, mask)

    def read(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """Picture `index` as an RGB image, and its labels, int16 [H, W]."""
        name = self.names[index]
        picture, labels = self.read_image(name), self.read_mask(name)
        self.check_sizes(name, picture, labels)
        return picture, labels

    def read_image(self, name: str) -> Image.Image:
        """The picture called `name`, as an upright RGB image."""
        return read_rgb(self.image_path(name))

    def read_mask(self, name: str) -> np.ndarray:
        """The labels of the picture called `name`, int16 [H, W]."""
        path = self.mask_path(name)
        return self.labels.read(self.read_stored(path), path)

    def read_stored(self, path: Path) -> np.ndarray:
        """The integers [H, W] in the mask `path`, before they are labels."""
        return read_mask_picture(path)

    def check_sizes(self, name: str, picture: Image.Image, labels: np.ndarray) -> None:
        """DataError naming both files unless the mask is as large as the picture."""
        height, width = labels.shape
        if (width, height) != picture.size:
            raise DataError(
                f"mask {self.mask_path(name)} is {width} x {height}: expected "
                f"{picture.width} x {picture.height} as its picture {self.image_path(name)}"
            )

    def missing_files(self) -> Iterator[str]:
        """What is missing or has no partner, a sentence each; no file is opened for it."""
        there = Listing()
        for name in self.names:
            if self.image_path(name) not in there:
                yield f"picture {self.image_path(name)} is missing: the data set lists {name}"
            if self.mask_path(name) not in there:
                yield f"mask {self.mask_path(name)} is missing: expected one for each picture"
