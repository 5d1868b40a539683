"""Predictions for pictures: a palette mask and an overlay of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..data import normalize
from .batches import equal_sizes, to_device
from .drawing import Painter
from .inference import Inference, evaluation_mode
from .memory import naming_pictures
from .pictures import check_not_overwritten, read_pictures, result_names
from .writing import Writer, save_png

_WRITERS = 4
Key = TypeVar("Key")


@dataclass(frozen=True, eq=False)
class Frame(Generic[Key]):
    """A picture to judge: `pixels` uint8 [H, W, 3] on the CPU. As text, its `key` names it in errors."""

    key: Key
    pixels: Tensor


@dataclass(frozen=True, eq=False)
class Prediction(Generic[Key]):
    """A judged picture: `pixels` uint8 [H, W, 3] and `classes` uint8 [H, W], `IGNORE` where the logits are NaN."""

    key: Key
    pixels: np.ndarray
    classes: np.ndarray


@dataclass(frozen=True, eq=False)
class Predictor:
    """Judges frames, up to `batch` of one size at a time, on `device`, where the network is."""

    network: nn.Module
    num_classes: int
    inference: Inference
    device: torch.device
    batch: int = 1

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}: expected at least 1")

    def __call__(self, frames: Iterable[Frame]) -> Iterator[Prediction]:
        """Predictions of all `frames`. While the device works on one batch, the batch before is handed on."""
        before: _Started | None = None
        with evaluation_mode(self.network):
            for group in equal_sizes(frames, self.batch, lambda frame: tuple(frame.pixels.shape)):
                started = self._start(group)
                if before is not None:
                    yield from before.finish()
                before = started
            if before is not None:
                yield from before.finish()

    def _start(self, group: list[Frame]) -> _Started:
        with naming_pictures([frame.key for frame in group]):
            pixels = to_device([frame.pixels for frame in group], self.device)
            images = normalize(pixels.permute(0, 3, 1, 2).float().div_(255))
            classes = self.inference.classes(self.network, images, self.num_classes)
        if self.device.type != "cuda":
            return _Started(group, classes, None)
        host = torch.empty(classes.shape, dtype=classes.dtype, pin_memory=True)
        host.copy_(classes, non_blocking=True)
        arrived = torch.cuda.Event()
        # the device need not be the current one
        arrived.record(torch.cuda.current_stream(self.device))
        return _Started(group, host, arrived)


class _Started(NamedTuple):
    """A batch on its way: `classes` uint8 [B, H, W] on the CPU are there once `arrived` has happened."""

    group: list[Frame]
    classes: Tensor
    arrived: torch.cuda.Event | None

    def finish(self) -> Iterator[Prediction]:
        if self.arrived is not None:
            self.arrived.synchronize()
        for frame, classes in zip(self.group, self.classes.cpu().numpy(), strict=True):
            yield Prediction(frame.key, frame.pixels.numpy(), classes)


def predict_pictures(
    predictor: Predictor,
    painter: Painter,
    paths: Sequence[Path],
    root: Path,
    out: Path,
    *,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    done: Callable[[Path, str], object] = lambda path, error: None,
) -> int:
    """Write `out`/masks/NAME.png and `out`/overlays/NAME.png of the pictures at `paths`; returns how many were broken.

    Process `rank` of `world_size` does numbers rank, rank + world_size, ... of `paths`, and counts the broken of these.
    NAME is the path below `root` without its suffix, or with it where two pictures would get one name. Masks and
    overlays have the size of the upright picture, as a viewer shows it.

    Args:
        workers: processes that decode; 0 for none.
        done: called after every picture with its path and, for a broken one, what is wrong with it.

    Raises:
        ValueError: a result would overwrite one of the pictures.
        OSError: a result cannot be written, or a picture does not fit into the memory of the device.
    """
    names = dict(zip(paths, result_names([path.relative_to(root) for path in paths]), strict=True))
    results = [(out / "masks" / name, out / "overlays" / name) for name in names.values()]
    check_not_overwritten(chain.from_iterable(results), paths)
    broken = 0

    def frames() -> Iterator[Frame[Path]]:
        nonlocal broken
        for picture in read_pictures(paths[rank::world_size], workers):
            if picture.pixels is None:
                broken += 1
                done(picture.path, picture.error)
            else:
                yield Frame(picture.path, picture.pixels)

    def write(prediction: Prediction[Path]) -> None:
        name = names[prediction.key]
        save_png(painter.mask(prediction.classes), out / "masks" / name)
        save_png(painter.overlay(prediction.pixels, prediction.classes), out / "overlays" / name)

    with Writer(_WRITERS) as writer:
        for prediction in predictor(frames()):
            writer.submit(write, prediction)
            done(prediction.key, "")
    return broken
