"""Folders and lists of a data set: found where people keep them, named when they are not there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from .errors import DataError


class Listing:
    """Answers `path in listing` for files; reads each folder once, which on network drives is much faster."""

    def __init__(self) -> None:
        self._names: dict[Path, frozenset[str]] = {}

    def __contains__(self, path: Path) -> bool:
        folder = path.parent
        if folder not in self._names:
            self._names[folder] = frozenset(file_names(folder)) if folder.is_dir() else frozenset()
        return path.name in self._names[folder]


def file_names(folder: Path) -> list[str]:
    """Sorted names of everything in `folder` but hidden files."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def find_root(root: str | Path, inside: Iterable[str], holds: str) -> Path:
    """`root`, or the first of the folders `inside` it, that has a folder `holds`; `root` itself if none has."""
    root = Path(root)
    places = (root, *(root / name for name in inside))
    return next((place for place in places if (place / holds).is_dir()), root)


def pascal_root(root: str | Path, year: str, masks: str, lists: str, *, holds: str, layout: str) -> Path:
    """The folder of PASCAL VOC's `year` at or below `root`, which has JPEGImages, `masks` and ImageSets/`lists`.

    It is known by its folder `holds`. Raises FileNotFoundError naming what is missing, and the `layout` expected.
    """
    found = find_root(root, (year, f"VOCdevkit/{year}"), holds)
    require_folders(found, ("JPEGImages", masks, f"ImageSets/{lists}"), layout)
    return found


def require_folders(root: Path, names: Iterable[str], layout: str) -> None:
    """FileNotFoundError naming the first of the folders `names` that `root` lacks, and the `layout` expected there."""
    for name in names:
        if not (root / name).is_dir():
            raise FileNotFoundError(f"folder {root / name} is missing: expected {layout} in {root}")


def first_folder(root: Path, names: Sequence[str]) -> Path:
    """The first of the folders `names` in `root` that is there; FileNotFoundError naming all when none is."""
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise FileNotFoundError(f"folder {root / names[0]} is missing: expected it, or {' or '.join(names[1:])} in {root}")


def read_list(path: Path) -> list[str]:
    """The lines of a list file, stripped, empty ones left out.

    Raises FileNotFoundError when it is missing, and DataError when it is empty or no text.
    """
    if not path.is_file():
        raise FileNotFoundError(f"list {path} is missing: expected one picture name a line")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"list {path} is no text ({error}): expected one picture name a line") from None
    names = [line for line in lines if line]
    if not names:
        raise DataError(f"list {path} is empty: expected one picture name a line")
    return names
