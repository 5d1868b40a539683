"""The Semantic Boundaries Dataset (SBD), whose masks make VOC's training list seven times as long."""

from __future__ import annotations

from pathlib import Path

from .folders import find_root, read_list, require_folders

MATLAB_FIELDS = ("GTcls", "Segmentation")
"""Where a file of `cls/` holds its labels."""


def sbd_root(path: str | Path) -> Path:
    """The folder with `cls/`, `train.txt` and `val.txt` at or below `path`, the unpacked release.

    Raises FileNotFoundError when there is none.
    """
    root = find_root(path, ("dataset", "benchmark_RELEASE/dataset"), "cls")
    require_folders(root, ("cls",), "the SBD release (benchmark_RELEASE/dataset with cls/, train.txt and val.txt)")
    return root


def trainaug_names(sbd: Path, voc_lists: Path) -> list[str]:
    """The usual "trainaug": VOC's train and all of SBD without VOC's val; 10582 pictures for VOC 2012, sorted.

    Args:
        sbd: what `sbd_root` returns.
        voc_lists: VOC's `ImageSets/Segmentation`.

    Raises FileNotFoundError or DataError when one of the four lists is missing or empty.
    """
    more = {name for split in ("train", "val") for name in read_list(sbd / f"{split}.txt")}
    own, held_out = (set(read_list(voc_lists / f"{split}.txt")) for split in ("train", "val"))
    return sorted((own | more) - held_out)
