"""Every kind of data set by the name that configurations and the command line use."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from .cityscapes import CityscapesSegmentation
from .coco_stuff import COCOStuffSegmentation
from .context import ContextSegmentation
from .dataset import SegmentationDataset, Transform
from .folder import FolderSegmentation
from .generated.dataset import GeneratedSegmentation
from .voc import VOCSegmentation

KINDS: dict[str, type[SegmentationDataset]] = {
    "voc": VOCSegmentation,
    "context": ContextSegmentation,
    "coco_stuff": COCOStuffSegmentation,
    "cityscapes": CityscapesSegmentation,
    "folder": FolderSegmentation,
    "generated": GeneratedSegmentation,
}


def open_dataset(
    kind: str,
    root: str | Path,
    split: str,
    *,
    transform: Transform | None = None,
    check_files: bool = True,
    **options: Any,
) -> SegmentationDataset:
    """The data set of a `kind` of `KINDS` under `root`.

    Args:
        kind: "voc", "context", "coco_stuff", "cityscapes", "folder" or "generated".
        root: the folder of the data set, as the class of that kind describes it.
        split: which part, such as "train" or "val".
        transform: called with (image, mask), returns what an item shall be.
        check_files: whether a missing picture or mask is an error now, and not when it is read.
        options: the other keyword arguments of the class of that kind.

    Raises:
        ValueError: there is no such kind, or the kind has no such option, or what its class raises.
        FileNotFoundError: a folder, list, picture or mask is missing.
    """
    check_options(kind, options)
    make: Callable[..., SegmentationDataset] = KINDS[kind]
    return make(root, split, transform=transform, check_files=check_files, **options)


def check_options(kind: str, options: Iterable[str]) -> None:
    """ValueError unless there is the `kind`, and it has all of the `options`."""
    known = option_names(kind)
    for name in options:
        if name not in known:
            raise ValueError(f"option {name!r} is unknown: expected {_one_of(known)} for kind {kind}")


def option_names(kind: str) -> list[str]:
    """Names of the options that a kind has beyond those of all. ValueError when there is no such kind."""
    parameters = _parameters(kind).values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def default_split(kind: str) -> str:
    """The part that a kind opens when none is named. ValueError when there is no such kind."""
    return _parameters(kind)["split"].default


def _one_of(names: list[str]) -> str:
    return f"one of {', '.join(names)}" if names else "none"


def _parameters(kind: str) -> Mapping[str, inspect.Parameter]:
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}: expected one of {', '.join(KINDS)}")
    return inspect.signature(KINDS[kind]).parameters
