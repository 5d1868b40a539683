"""Every kind of data set by the name that configurations and the command line use."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from .dataset import SegmentationDataset
from .folder import FolderSegmentation
from .generated.dataset import GeneratedSegmentation
from .voc import VOCSegmentation

KINDS: dict[str, type[SegmentationDataset]] = {
    "voc": VOCSegmentation,
    "folder": FolderSegmentation,
    "generated": GeneratedSegmentation,
}


def open_dataset(kind: str, root: str | Path, split: str, **options: Any) -> SegmentationDataset:
    """The data set of a `kind` of `KINDS` under `root`.

    Args:
        kind: "voc", "context", "coco_stuff", "cityscapes", "folder" or "generated".
        root: the folder of the data set, as the class of that kind describes it.
        split: which part, such as "train" or "val".
        options: keyword arguments of the class of that kind.

    Raises:
        ValueError: there is no such kind, or the kind has no such option, or what its class raises.
        FileNotFoundError: a folder, list, picture or mask is missing.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}: expected one of {', '.join(KINDS)}")
    known = option_names(kind)
    for name in options:
        if name not in known:
            raise ValueError(f"option {name!r} is unknown: expected one of {', '.join(known)} for kind {kind}")
    return KINDS[kind](root, split, **options)  # type: ignore[arg-type]


def option_names(kind: str) -> list[str]:
    """Names of the options of a kind: the keyword arguments of its class."""
    parameters = inspect.signature(KINDS[kind]).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
