"""Random changes of brightness, contrast and colours, as mmsegmentation makes them by default in training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

_BRIGHTNESS = 32
"""Largest change of a value from 0 to 255."""
_FACTORS = (0.5, 1.5)
"""Of contrast and of saturation."""
_HUE = 18 / 180
"""Largest turn of the hue, as a part of the circle."""
_VALUES = np.arange(256)


@dataclass(frozen=True)
class Distortion:
    """What happens to the colours of one picture; the defaults change nothing.

    In this order: brightness, contrast if it comes first, saturation, hue, contrast if it does not come first. Values
    are rounded and kept between 0 and 255 after each.

    Attributes:
        brightness: is added to every value.
        contrast: every value is multiplied by it.
        contrast_first: whether before saturation and hue, which matters where values end at 255.
        saturation: is multiplied by it, in HSV.
        hue: is turned by this part of the circle, in HSV.
    """

    brightness: float = 0.0
    contrast: float = 1.0
    contrast_first: bool = True
    saturation: float = 1.0
    hue: float = 0.0

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Distortion:
        """Each of the four with probability one half, evenly from its range; contrast first in every second picture."""

        def maybe(low: float, high: float, otherwise: float) -> float:
            # always two numbers, so that what is drawn later does not depend on it
            chosen, value = rng.random() < 0.5, rng.uniform(low, high)
            return value if chosen else otherwise

        return cls(
            brightness=maybe(-_BRIGHTNESS, _BRIGHTNESS, 0.0),
            contrast=maybe(*_FACTORS, 1.0),
            contrast_first=bool(rng.random() < 0.5),
            saturation=maybe(*_FACTORS, 1.0),
            hue=maybe(-_HUE, _HUE, 0.0),
        )

    def __call__(self, picture: Image.Image) -> Image.Image:
        """The RGB `picture` with other colours."""
        contrast = _table(_VALUES * self.contrast)
        picture = picture.point(_table(_VALUES + self.brightness) * 3)
        if self.contrast_first:
            picture = picture.point(contrast * 3)
        if self.saturation != 1 or self.hue != 0:
            # Pillow keeps the hue in 256 steps
            turned = ((_VALUES + round(256 * self.hue)) % 256).tolist()
            tables = turned + _table(_VALUES * self.saturation) + _VALUES.tolist()
            picture = picture.convert("HSV").point(tables).convert("RGB")
        return picture if self.contrast_first else picture.point(contrast * 3)


def _table(values: np.ndarray) -> list[int]:
    return values.round().clip(0, 255).astype(int).tolist()
