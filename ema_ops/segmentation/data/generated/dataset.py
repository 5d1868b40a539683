"""The generated set from disk."""

from __future__ import annotations

from pathlib import Path

from typing_extensions import Unpack

from ..dataset import Common
from ..voc import VOCSegmentation
from .drawing import CLASSES


class GeneratedSegmentation(VOCSegmentation):
    """The set that `ema-ops data generate ROOT` wrote, with its five classes.

    Args:
        root: the folder it was written to.
        split: "train" or "val".
        transform, check_files: as in `SegmentationDataset`.

    Raises FileNotFoundError when there is no such folder, and otherwise what `VOCSegmentation` raises.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        **common: Unpack[Common],
    ):
        if not Path(root).is_dir():
            raise FileNotFoundError(f"folder {root} is missing: run `ema-ops data generate {root}` to make the set")
        super().__init__(root, split, classes=CLASSES, **common)
