"""Pixels of the generated set: photographs in scikit-image's wheel, handwritten digits in scikit-learn's."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

PHOTOGRAPHS = {
    "train": (
        "astronaut.png",
        "brick.png",
        "camera.png",
        "coffee.png",
        "coins.png",
        "grass.png",
        "hubble_deep_field.jpg",
        "motorcycle_left.png",
    ),
    "val": ("chelsea.png", "gravel.png", "ihc.png", "moon.png", "rocket.jpg"),
}
"""File names in the folder `skimage/data` of the installed package; no photograph is in both."""

DIGITS = {"train": slice(0, 906), "val": slice(1029, 1797)}
"""Seven sheets of handwriting and six. Every sheet holds one writer's copy of the same sequence of about 128 digits,
and the data set keeps the order of writing; the sheet between the two parts is left out, so they share no writer."""


def photograph(name: str) -> Image.Image:
    """One photograph of scikit-image as RGB, from the installed wheel; nothing is downloaded.

    Raises FileNotFoundError when the wheel does not hold it.
    """
    import skimage

    path = Path(skimage.__file__).parent / "data" / name
    if not path.is_file():
        raise FileNotFoundError(f"photograph {path} is missing: expected it in scikit-image {version('scikit-image')}")
    with Image.open(path) as picture:
        return picture.convert("RGB")


def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Digits by the writers of "train" or "val": ink float32 [n, 8, 8] in 0 to 1, and values int64 [n]."""
    from sklearn.datasets import load_digits

    data = load_digits()
    part = DIGITS[split]
    return (data.images[part] / 16).astype(np.float32), data.target[part].astype(np.int64)
