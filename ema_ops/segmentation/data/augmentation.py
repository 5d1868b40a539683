"""The augmentation of the paper, a random scale, crop and flip, and what mmsegmentation does besides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .distortion import Distortion
from .labels import IGNORE
from .normalization import normalize_

_DRAWS = 11
"""Crops that are looked at, at most, for one without a class that has too much of it; the last is taken as it is."""


@dataclass(frozen=True)
class Augmentation:
    """What training does to a picture and its mask before it sees them.

    Args:
        crop: height and width of the result in pixels.
        scales: the picture is resized by a factor drawn evenly between these two.
        flip: whether half of the pictures are mirrored left to right.
        scale_step: the factor is one of low, low + step, ..., high, each as likely as the others; None for any between.
        max_class_share: a crop with one class only, or one that has this share of its labelled pixels or more, is drawn
            again, up to ten times (mmsegmentation's `cat_max_ratio`); None takes every crop.
        distort_colours: whether `Distortion` changes brightness, contrast and colours.

    Raises ValueError when one is out of range.
    """

    crop: tuple[int, int]
    scales: tuple[float, float]
    flip: bool
    scale_step: float | None = None
    max_class_share: float | None = None
    distort_colours: bool = False

    def __post_init__(self) -> None:
        if min(self.crop) < 1:
            raise ValueError(f"crop is {self.crop}: expected at least one pixel each way")
        low, high = self.scales
        if not 0 < low <= high < float("inf"):
            raise ValueError(f"scales is {self.scales}: expected two positive numbers, the smaller one first")
        if self.scale_step is not None:
            if not 0 < self.scale_step < float("inf"):
                raise ValueError(f"scale_step is {self.scale_step}: expected a positive number")
            steps = (high - low) / self.scale_step
            if abs(steps - round(steps)) > 1e-6:
                raise ValueError(f"scale_step is {self.scale_step}: expected a part of {high} - {low}")
        if self.max_class_share is not None and not 0 < self.max_class_share < 1:
            raise ValueError(f"max_class_share is {self.max_class_share}: expected a number between 0 and 1")

    def __call__(self, rng: np.random.Generator, picture: Image.Image, labels: np.ndarray) -> tuple[Tensor, Tensor]:
        """Normalised image, float32 [3, h, w], and mask, int64 [h, w], of an RGB picture and its labels [H, W].

        The picture is resized bilinearly (and smoothed where it shrinks), the mask to its nearest neighbours. What the
        crop has beyond the picture, below it and to its right, is the mean colour, zero, with the label `IGNORE`.
        """
        scale = self._scale(rng)
        height, width = (max(1, round(side * scale)) for side in labels.shape)
        for _ in range(1 if self.max_class_share is None else _DRAWS):
            rows = _window(rng, height, self.crop[0])
            columns = _window(rng, width, self.crop[1])
            nearest = np.ix_(_nearest(rows, labels.shape[0], height), _nearest(columns, labels.shape[1], width))
            part_of_labels = labels[nearest]
            if self.max_class_share is None or _largest_share(part_of_labels) < self.max_class_share:
                break
        mirrored = self.flip and rng.random() < 0.5

        window = _resized_window(picture, (height, width), rows, columns)
        if self.distort_colours:
            window = Distortion.drawn(rng)(window)
        pixels = torch.from_numpy(np.array(window)).permute(2, 0, 1)
        target = torch.from_numpy(part_of_labels)
        image, mask = torch.zeros(3, *self.crop), torch.full(self.crop, IGNORE)
        part = np.s_[..., : len(rows), : len(columns)]
        image[part] = pixels.flip(-1) if mirrored else pixels
        mask[part] = target.flip(-1) if mirrored else target
        normalize_(image[part].div_(255))
        return image, mask

    def _scale(self, rng: np.random.Generator) -> float:
        low, high = self.scales
        if self.scale_step is None:
            return rng.uniform(low, high)
        return low + self.scale_step * int(rng.integers(round((high - low) / self.scale_step) + 1))


def _largest_share(labels: np.ndarray) -> float:
    """The share of the most frequent class in the labelled pixels; 1 where there is none."""
    counts = np.bincount(labels[labels != IGNORE])
    return counts.max() / counts.sum() if counts.size else 1.0


def _window(rng: np.random.Generator, size: int, crop: int) -> range:
    """A random stretch of `crop` of `size` pixels, all of them if there are fewer."""
    start = int(rng.integers(max(size - crop, 0) + 1))
    return range(start, start + min(size, crop))


def _resized_window(picture: Image.Image, size: tuple[int, int], rows: range, columns: range) -> Image.Image:
    """The window of `picture` resized to `size` (height, width), without resizing what lies outside the window."""
    down, across = picture.height / size[0], picture.width / size[1]
    box = (columns.start * across, rows.start * down, columns.stop * across, rows.stop * down)
    # a product such as 3 * (500 / 3) can land a hair beyond the border
    box = (box[0], box[1], min(box[2], picture.width), min(box[3], picture.height))
    return picture.resize((len(columns), len(rows)), Image.Resampling.BILINEAR, box=box)


def _nearest(window: range, source: int, size: int) -> np.ndarray:
    """Indices of the `source` pixels nearest to the centres of `window`, when `source` pixels are resized to `size`."""
    return (2 * np.asarray(window) + 1) * source // (2 * size)
