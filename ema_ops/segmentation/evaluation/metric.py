"""The confusion matrix and the scores that are read off it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist
from torchmetrics.classification import MulticlassConfusionMatrix

from ..data import IGNORE


@dataclass(frozen=True, eq=False)
class Scores:
    """What a network got right and wrong on a data set.

    `confusion` int64 [C, C], on the CPU: pixels of class `row` that were given class `column`, ignored ones left out.
    All scores are between 0 and 1.
    """

    confusion: Tensor

    @property
    def pixels(self) -> Tensor:
        """Labelled pixels of every class, int64 [C]."""
        return self.confusion.sum(dim=1)

    @property
    def class_iou(self) -> Tensor:
        """Intersection over union of every class, float64 [C]; NaN for a class in neither labels nor predictions."""
        hits = self.confusion.diagonal()
        return hits.double() / (self.confusion.sum(dim=0) + self.confusion.sum(dim=1) - hits)

    @property
    def class_accuracy(self) -> Tensor:
        """Share of the pixels of every class that were found, float64 [C]; NaN for a class without a labelled pixel."""
        return self.confusion.diagonal().double() / self.pixels

    @property
    def mean_iou(self) -> float:
        """Mean of `class_iou` over the classes that have one; NaN when none has."""
        return self.class_iou.nanmean().item()

    @property
    def mean_accuracy(self) -> float:
        """Mean of `class_accuracy` over the classes that have one; NaN when none has."""
        return self.class_accuracy.nanmean().item()

    @property
    def pixel_accuracy(self) -> float:
        """Share of all labelled pixels that were given their class; NaN when there is none."""
        total = self.confusion.sum().item()
        return self.confusion.diagonal().sum().item() / total if total else math.nan


class ConfusionCounter:
    """Counts (label, prediction) pairs on `device`, over all ranks when `torch.distributed` is initialised.

    Pairs are gathered and counted `PIXELS` at a time, for counting makes the CPU wait for the device. It waits for
    these pairs only, in a stream of their own, and when the device has been given the batch after them.
    """

    PIXELS = 2**22

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self._metric = MulticlassConfusionMatrix(
            num_classes, ignore_index=IGNORE, validate_args=False, sync_on_compute=False
        ).to(device)
        self._beside = _Beside(device)
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._pixels = 0

    def update(self, predictions: Tensor, masks: Tensor) -> None:
        """Count `predictions` and `masks`, both uint8 [B, H, W] on the device; `IGNORE` in the masks is left out.

        Raises ValueError, now or in a later call, for `IGNORE` in the predictions: the network told no class.
        """
        if self._pixels >= self.PIXELS:
            self._count()
        self._waiting.append((predictions.flatten(), masks.flatten()))
        self._pixels += masks.numel()
        self._beside.follow()

    def compute(self) -> Scores:
        """The scores of everything counted so far by all ranks; every rank must call it."""
        if self._waiting:
            self._count()
        confusion = self._metric.confmat.clone()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(confusion)
        return Scores(confusion.cpu())

    def _count(self) -> None:
        with self._beside(), _counting_as_usual():
            predictions, masks = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
            if (predictions == IGNORE).any():
                raise ValueError("the network has logits that are NaN: expected numbers, maybe too large for float16")
            self._metric.update(predictions, masks)
        self._waiting, self._pixels = [], 0


class _Beside:
    """Work on a GPU beside that of the current stream; elsewhere there is no beside, and nothing happens."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._so_far: torch.cuda.Event | None = None

    def follow(self) -> None:
        """What the next block does comes after all that the current stream was given so far."""
        if self._stream is not None:
            self._so_far = torch.cuda.current_stream(self._device).record_event()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """The block runs beside, and is done at its end."""
        if self._stream is None:
            yield
            return
        if self._so_far is not None:
            self._stream.wait_event(self._so_far)
        with torch.cuda.stream(self._stream):
            yield
        self._stream.synchronize()


@contextmanager
def _counting_as_usual() -> Iterator[None]:
    # integer counts are deterministic, but with the flag torchmetrics builds a [pixels, C * C] table instead
    flag, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(flag, warn_only=warn_only)
