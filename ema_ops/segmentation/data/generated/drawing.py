"""The generated set: a small segmentation task in the folder layout of PASCAL VOC that needs context.

Every picture is a crop of a photograph with handwritten digits on it: a large cue digit on the left, a few small
digits on the right. The cue's value, 0, 1 or 2, is the class of all digits on the right, whatever their own
value. So the class of a pixel on the right is decided at least `DISTANCE` pixels away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..palette import voc_palette
from .sources import PHOTOGRAPHS, digits, photograph

CLASSES = ("background", "cue", "marked zero", "marked one", "marked two")
"""Labels 0 to 4. The last three look alike: only the cue tells them apart."""

CUE_VALUES = (0, 1, 2)
FIRST_MARKED = 2
HEIGHT, WIDTH = 96, 128
CUE_END, MARKED_START = 36, 80
DISTANCE = MARKED_START - CUE_END
"""Columns between the last one a cue may touch and the first one a marked digit may touch, plus one."""

_CUE_SIZES, _MARKED_SIZES = (30, 36), (18, 22)
_BOLDNESS = 1.8
_CELL = 24
_CELLS = [(top, left) for top in range(0, HEIGHT, _CELL) for left in range(MARKED_START, WIDTH, _CELL)]


@dataclass(frozen=True)
class Stroke:
    """One handwritten digit on its way into a picture: ink [8, 8], edge length in pixels, top left corner."""

    ink: np.ndarray
    size: int
    top: int
    left: int


def build(root: Path, *, train: int, val: int, seed: int, progress: Callable[[int], object] = lambda _: None) -> None:
    """Write the set under `root`: `train` and `val` pictures, the same for the same seed.

    `progress` is called with the number of pictures just written.
    """
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number, (split, count) in enumerate({"train": train, "val": val}.items()):
        rng = np.random.default_rng([seed, number])
        photographs = [photograph(name) for name in PHOTOGRAPHS[split]]
        ink, values = digits(split)
        names = [f"{split}_{index:05d}" for index in range(count)]
        for name in names:
            image, label = draw(rng, photographs, ink, values)
            _save(root, name, image, label)
            progress(1)
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))


def draw(
    rng: np.random.Generator, photographs: list[Image.Image], ink: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One random picture, uint8 [96, 128, 3], and its labels, uint8 [96, 128]."""
    photo = _crop(rng, photographs[rng.integers(len(photographs))])
    cue_value = int(rng.choice(CUE_VALUES))
    cue = _stroke(rng, ink[rng.choice(np.flatnonzero(values == cue_value))], _CUE_SIZES, (0, 0, HEIGHT, CUE_END))
    marked = [
        _stroke(rng, ink[rng.integers(len(ink))], _MARKED_SIZES, (top, left, top + _CELL, left + _CELL))
        for top, left in (_CELLS[cell] for cell in rng.permutation(len(_CELLS))[: rng.integers(3, 7)])
    ]
    return compose(photo, cue, cue_value, marked)


def compose(photo: np.ndarray, cue: Stroke, cue_value: int, marked: list[Stroke]) -> tuple[np.ndarray, np.ndarray]:
    """Digits on `photo`, uint8 [H, W, 3], white on a dark one and black on a light one, and their labels [H, W]."""
    tone = 255.0 if photo.mean() < 128 else 0.0
    image, label = photo.astype(np.float32), np.zeros(photo.shape[:2], dtype=np.uint8)
    for stroke, value in [(cue, 1), *((stroke, FIRST_MARKED + cue_value) for stroke in marked)]:
        window = np.s_[stroke.top : stroke.top + stroke.size, stroke.left : stroke.left + stroke.size]
        cover = _enlarge(stroke.ink, stroke.size)
        image[window] += cover[..., None] * (tone - image[window])
        label[window][cover > 0.5] = value
    return image.round().clip(0, 255).astype(np.uint8), label


def _stroke(
    rng: np.random.Generator, ink: np.ndarray, sizes: tuple[int, int], box: tuple[int, int, int, int]
) -> Stroke:
    """`ink` at a random size, and at a random place inside `box`: top, left, bottom, right."""
    size = int(rng.integers(sizes[0], sizes[1] + 1))
    top, left = (int(rng.integers(box[side], box[side + 2] - size + 1)) for side in (0, 1))
    return Stroke(ink, size, top, left)


def _enlarge(ink: np.ndarray, size: int) -> np.ndarray:
    """How much ink covers each pixel, [size, size] in 0 to 1."""
    return (_BOLDNESS * np.asarray(Image.fromarray(ink).resize((size, size), Image.Resampling.BICUBIC))).clip(0, 1)


def _crop(rng: np.random.Generator, photo: Image.Image) -> np.ndarray:
    """A random 4:3 window of a photograph, between a third and all of its shorter side, at the set's size."""
    height = int(min(photo.height, photo.width * HEIGHT / WIDTH) * rng.uniform(1 / 3, 1))
    width = round(height * WIDTH / HEIGHT)
    left = int(rng.integers(photo.width - width + 1))
    top = int(rng.integers(photo.height - height + 1))
    box = (left, top, left + width, top + height)
    return np.asarray(photo.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR, box=box))


def _save(root: Path, name: str, image: np.ndarray, label: np.ndarray) -> None:
    Image.fromarray(image).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
    mask = Image.fromarray(label)
    mask.putpalette(voc_palette().tobytes())
    mask.save(root / "SegmentationClass" / f"{name}.png")
