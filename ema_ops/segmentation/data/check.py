"""Finding everything that is wrong with a data set before training starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from .dataset import SegmentationDataset
from .errors import DataError
from .kinds import check_options, open_dataset
from .labels import IGNORE
from .workers import check_workers, in_order

Value = TypeVar("Value")


@dataclass(frozen=True)
class Report:
    """What `check_dataset` found.

    Attributes:
        num_images: pictures that the data set lists.
        problems: a sentence for each thing that is wrong; it names the file.
        classes: names of the classes.
        pixels: how many pixels of the readable masks have each label, int64 [num_classes].
        images: how many readable masks have each label, int64 [num_classes].
        ignored: how many pixels of the readable masks belong to no class.
    """

    num_images: int
    problems: tuple[str, ...]
    classes: tuple[str, ...]
    pixels: np.ndarray
    images: np.ndarray
    ignored: int


def check_dataset(
    kind: str, root: str | Path, split: str, *, workers: int = 0, progress: bool = False, **options: Any
) -> Report:
    """Read every picture and mask of a data set and tell everything that is wrong.

    Args:
        kind: as for `open_dataset`, and so `root`, `split` and `options`.
        workers: processes that read.
        progress: whether to show a progress bar.

    Raises ValueError or TypeError when the kind, an option or `workers` is wrong.
    """
    check_workers(workers)
    check_options(kind, options)
    try:
        dataset = open_dataset(kind, root, split, check_files=False, **options)
    except (OSError, DataError) as error:
        nothing = np.zeros(0, dtype=np.int64)
        return Report(0, (str(error),), (), nothing, nothing, 0)
    problems = list(dataset.missing_files())
    pixels, images = np.zeros((2, IGNORE + 1), dtype=np.int64)
    looks = in_order(_Look(dataset), range(len(dataset)), workers=workers)
    for found, counts in tqdm(looks, total=len(dataset), desc="check", unit="picture", disable=not progress):
        problems += found
        pixels += counts
        images += counts > 0
    labels = slice(dataset.num_classes)
    return Report(len(dataset), tuple(problems), dataset.classes, pixels[labels], images[labels], int(pixels[IGNORE]))


@dataclass(frozen=True)
class _Look:
    """The work for one picture: what is wrong with its files, and how often each label occurs, int64 [256]."""

    dataset: SegmentationDataset

    def __call__(self, index: int) -> tuple[list[str], np.ndarray]:
        name = self.dataset.names[index]
        problems: list[str] = []
        picture = _read(self.dataset.read_image, name, self.dataset.image_path(name), problems)
        labels = _read(self.dataset.read_mask, name, self.dataset.mask_path(name), problems)
        if picture is not None and labels is not None:
            try:
                self.dataset.check_sizes(name, picture, labels)
            except DataError as error:
                problems.append(str(error))
        counts = np.zeros(IGNORE + 1, dtype=np.int64)
        if labels is not None:
            counts += np.bincount(labels.ravel(), minlength=IGNORE + 1)
        return problems, counts


def _read(read: Callable[[str], Value], name: str, path: Path, problems: list[str]) -> Value | None:
    """`read(name)`, or None and a problem more; a missing file is none here, `missing_files` tells of it."""
    if not path.is_file():
        return None
    try:
        return read(name)
    except (OSError, DataError) as error:
        problems.append(str(error))
        return None
