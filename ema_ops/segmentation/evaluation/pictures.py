"""The pictures of a user: found, decoded as a viewer shows them, and named so that no result overwrites another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.folder import ENDINGS
from ..data.pictures import read_rgb
from ..data.workers import check_workers, in_order


class Picture(NamedTuple):
    """A decoded picture: `pixels` uint8 [H, W, 3], or None and the `error` that names the file."""

    path: Path
    pixels: Tensor | None
    error: str = ""


def read_picture(path: Path) -> Picture:
    """The picture at `path`, upright; what cannot be decoded comes with an error, so that others can go on."""
    try:
        return Picture(path, torch.from_numpy(np.array(read_rgb(path))))
    except (OSError, ValueError) as error:
        return Picture(path, None, str(error))


def read_pictures(paths: Sequence[Path], workers: int) -> Iterator[Picture]:
    """The pictures at `paths` in their order, decoded ahead by `workers` processes, 0 or more."""
    check_workers(workers)
    return in_order(read_picture, paths, workers=workers)


def find_pictures(folder: Path, leave_out: Path) -> list[Path]:
    """All pictures below `folder` in the order of their paths, but those that are hidden, as files or by a folder, and
    what lies in `leave_out`, where that is below `folder`.

    Raises ValueError when there is none.
    """
    leave_out = leave_out.resolve()
    around = folder.resolve().is_relative_to(leave_out)
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in ENDINGS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
        and (around or not path.resolve().is_relative_to(leave_out))
    ]
    if not found:
        raise ValueError(f"folder {folder} has no pictures: expected files ending in {' '.join(ENDINGS)}")
    return found


def result_names(paths: Sequence[Path]) -> list[Path]:
    """A name ending in .png for every one of `paths`; `a.jpg` beside `a.png` become `a.jpg.png` and `a.png.png`."""
    names = [path.with_suffix(".png") for path in paths]
    # a longer name may meet another picture's short one
    while clashes := {name for name, count in Counter(names).items() if count > 1}:
        names = [
            path.with_name(f"{path.name}.png") if name in clashes else name
            for path, name in zip(paths, names, strict=True)
        ]
    return names


def check_not_overwritten(results: Iterable[Path], sources: Iterable[Path]) -> None:
    """Raise ValueError when one of `results` is one of `sources`."""
    known = {path.resolve() for path in sources}
    for result in results:
        if result.resolve() in known:
            raise ValueError(f"{result} would be overwritten by a result: expected another out folder")
