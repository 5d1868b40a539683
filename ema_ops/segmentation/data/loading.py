"""Batches to train on and samples to judge, the same whoever loads them and wherever they start."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .augmentation import Augmentation
from .dataset import SegmentationDataset
from .normalization import normalize
from .workers import check_workers, in_order

_ORDER, _AUGMENTATION = 0, 1
"""What a stream of random numbers is for; its first word, so no two streams are the same."""


class Batch(NamedTuple):
    """Part of a training batch: images float32 [b, 3, h, w] normalised, masks int64 [b, h, w], names."""

    images: Tensor
    masks: Tensor
    names: list[str]


class Sample(NamedTuple):
    """One picture to judge: image float32 [3, H, W] normalised, mask int64 [H, W], name."""

    image: Tensor
    mask: Tensor
    name: str


def training_batches(
    dataset: SegmentationDataset,
    *,
    crop: int | tuple[int, int],
    scales: tuple[float, float] = (0.5, 2.0),
    flip: bool = True,
    scale_step: float | None = None,
    max_class_share: float | None = None,
    distort_colours: bool = False,
    batch: int,
    seed: int,
    start: int = 0,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
) -> Iterator[Batch]:
    """Endless batches of augmented crops, from batch number `start` on.

    Batch i depends on `dataset`, the augmentation, `batch`, `seed` and i only. Each epoch is a permutation of its own,
    and one follows the other without a gap: a batch may end one epoch and begin the next, and so may hold a picture
    twice. The ranks' parts in order are the batch of one process.

    Args:
        dataset: without a `transform`.
        crop: edge length of the crops in pixels, or their (height, width).
        scales: pictures are resized by a factor drawn evenly between these two.
        flip: whether half of the pictures are mirrored.
        scale_step: the factor is one of low, low + step, ..., high; None for any between.
        max_class_share: crops with such a share of one class are drawn again, as `Augmentation` says; None for none.
        distort_colours: whether brightness, contrast and colours are changed at random, as `Distortion` says.
        batch: pictures in the batch of all ranks together.
        seed: 0 or more.
        start: number of the first batch; nothing is read of those before it.
        rank: which of `world_size` processes this one is; it gets pictures rank * b to (rank + 1) * b - 1 of each
            batch, b = batch / world_size.
        world_size: how many processes share a batch; a divisor of `batch`.
        workers: processes that read ahead; 0 reads when asked.

    Raises:
        ValueError: an argument is out of range; at reading, what a data set raises.
        OSError: at reading, what a data set raises.
    """
    _check_share(rank, world_size, workers)
    for name, value, least in (("batch", batch, 1), ("seed", seed, 0), ("start", start, 0)):
        if value < least:
            raise ValueError(f"{name} is {value}: expected {least} or more")
    if batch % world_size:
        raise ValueError(f"batch is {batch}: expected a multiple of the {world_size} processes that share it")
    if dataset.transform is not None:
        raise ValueError(f"transform is {dataset.transform!r}: expected None for training, which augments by itself")
    height, width = (crop, crop) if isinstance(crop, int) else crop
    low, high = scales
    augmentation = Augmentation((height, width), (low, high), flip, scale_step, max_class_share, distort_colours)
    plan = _plan(len(dataset), batch=batch, seed=seed, start=start, rank=rank, world_size=world_size)
    return in_order(_Crops(dataset, augmentation, seed), plan, workers=workers, pinned=True)


def evaluation_samples(
    dataset: SegmentationDataset, *, rank: int = 0, world_size: int = 1, workers: int = 0
) -> Iterator[Sample]:
    """Every picture of `dataset` once, whole; process `rank` of `world_size` gets numbers rank, rank + world_size, ...

    `workers` processes read ahead; 0 reads when asked. Raises ValueError for a rank out of range, and what `dataset`
    raises at reading.
    """
    _check_share(rank, world_size, workers)
    return in_order(_Samples(dataset), range(rank, len(dataset), world_size), workers=workers)


@dataclass(frozen=True)
class _Crops:
    """The work for one batch: the crops of (epoch, index) pairs."""

    dataset: SegmentationDataset
    augmentation: Augmentation
    seed: int

    def __call__(self, places: list[tuple[int, int]]) -> Batch:
        crops = [self._crop(epoch, index) for epoch, index in places]
        images, masks = (torch.stack(tensors) for tensors in zip(*crops, strict=True))
        return Batch(images, masks, [self.dataset.names[index] for _, index in places])

    def _crop(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([_AUGMENTATION, self.seed, epoch, index])
        return self.augmentation(rng, *self.dataset.read(index))


@dataclass(frozen=True)
class _Samples:
    """The work for one sample."""

    dataset: SegmentationDataset

    def __call__(self, index: int) -> Sample:
        image, mask = self.dataset[index]
        return Sample(normalize(image), mask, self.dataset.names[index])


def _plan(
    length: int, *, batch: int, seed: int, start: int, rank: int, world_size: int
) -> Iterator[list[tuple[int, int]]]:
    """The (epoch, index) pairs of this rank's part of each batch from `start` on."""

    @lru_cache(maxsize=2)
    def permutation(epoch: int) -> np.ndarray:
        return np.random.default_rng([_ORDER, seed, epoch]).permutation(length)

    share = batch // world_size
    for number in count(start):
        first = number * batch + rank * share
        places = (divmod(position, length) for position in range(first, first + share))
        yield [(epoch, int(permutation(epoch)[place])) for epoch, place in places]


def _check_share(rank: int, world_size: int, workers: int) -> None:
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank}: expected 0 to {world_size - 1} for {world_size} processes")
    check_workers(workers)
