"""Checkpoints of a run: what must be in them to go on as if nothing had happened."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import Config
from ..data import SegmentationDataset
from ..models.checkpoints import read_checkpoint

LATEST, BEST = "latest.pt", "best.pt"

_HARMLESS = (
    "out",
    "data.root",
    "data.options.sbd",
    "data.workers",
    "evaluation.batch",
    "model.backbone_weights",
    "model.weights",
    "model.skip_unfitting",
    "published",
    "training.device",
    "training.threads",
    "training.validate_every",
    "training.save_every",
    "training.log_every",
    "training.pictures",
)
"""Settings, or whole sections, that may change when a run is resumed: the same steps follow."""


def fingerprint(dataset: SegmentationDataset) -> str:
    """Says whether two data sets have the same pictures by name, in the same order."""
    return hashlib.sha256("\n".join(dataset.names).encode()).hexdigest()


def check_out(out: Path, *, resume: bool) -> None:
    """Whether `out` is free for a new run, or holds one to go on with.

    Raises:
        ValueError: a new run, and there is a checkpoint.
        NotADirectoryError: `out` is a file.
        FileNotFoundError: nothing to resume.
    """
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"out is {out}, a file: expected a folder")
    if resume and not (out / LATEST).is_file():
        raise FileNotFoundError(
            f"{out / LATEST} is missing: --resume expects the checkpoint of a run that was interrupted"
        )
    for name in () if resume else (LATEST, BEST):
        if (out / name).exists():
            raise ValueError(f"{out / name} exists: expected --resume to go on with that run, or another --out")


def read_training(out: Path, config: Config, dataset: SegmentationDataset) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """The network's state and the state of the training in the latest checkpoint of `out`.

    Raises:
        ValueError: it is no checkpoint of a training run, or of a run with other settings or data; all are named.
    """
    path = out / LATEST
    checkpoint = read_checkpoint(path)
    training = checkpoint.content.get("training")
    if not isinstance(training, dict) or "optimizer" not in training:
        raise ValueError(f"{path} has no state of a training run: expected the {LATEST} of ema-ops train")
    changes = changed_settings(training["config"], config.plain())
    if changes:
        raise ValueError(
            f"{path} is of a run with other settings: {'; '.join(changes)}; expected the same, or a new run with --out"
        )
    if training["pictures"] != fingerprint(dataset):
        raise ValueError(f"{path} is of a run on other pictures: expected those that {config.data.root} had then")
    return checkpoint.state, training


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Every setting that matters and differs, as "key was 1 and is 2"."""
    old, new = _flat(before), _flat(now)
    return [
        f"{key} was {old.get(key)!r} and is {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not any(f"{key}.".startswith(f"{name}.") for name in _HARMLESS)
    ]


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat
