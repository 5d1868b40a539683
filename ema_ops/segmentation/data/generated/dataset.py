"""The generated set from disk."""

from __future__ import annotations

from pathlib import Path

from ..dataset import Transform
from ..voc import VOCSegmentation
from .drawing import CLASSES


class GeneratedSegmentation(VOCSegmentation):
    """The set that `ema-ops data generate ROOT` wrote, with its five classes.

    Args:
        root: the folder it was written to.
        split: "train" or "val".
        transform: called with (image, mask), returns what the item shall be.
        check_files: whether a missing picture or mask is an error now, and not when it is read.

    Raises FileNotFoundError when there is no such folder, and otherwise what `VOCSegmentation` raises.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        transform: Transform | None = None,
        check_files: bool = True,
    ):
        if not Path(root).is_dir():
            raise FileNotFoundError(f"folder {root} is missing: run `ema-ops data generate {root}` to make the set")
        super().__init__(root, split, classes=CLASSES, transform=transform, check_files=check_files)
