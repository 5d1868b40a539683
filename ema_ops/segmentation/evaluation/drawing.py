"""Predicted classes as pictures: the palette mask and the overlay with its legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_SMALLEST = 96
"""A picture with a shorter edge in pixels has no room for a legend."""


@dataclass(frozen=True, eq=False)
class Painter:
    """Draws classes [H, W].

    Attributes:
        names: of the classes; one called "background" is left unpainted in overlays.
        palette: uint8 [256, 3], row i is the colour of class i.
        alpha: how strongly an overlay is painted, 0 (only the picture) to 1 (only the colours).

    Raises ValueError when alpha is out of range.
    """

    names: Sequence[str]
    palette: np.ndarray
    alpha: float = 0.6

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha}: expected 0 to 1")

    def mask(self, classes: np.ndarray) -> Image.Image:
        """`classes` uint8 [H, W] as a picture of mode P, whose values are the classes."""
        picture = Image.fromarray(classes)
        picture.putpalette(self.palette.tobytes())
        return picture

    def overlay(self, pixels: np.ndarray, classes: np.ndarray) -> Image.Image:
        """The colours of `classes` uint8 [H, W] blended over `pixels` uint8 [H, W, 3], with a legend in the corner."""
        picture = Image.fromarray(pixels)
        painted = Image.blend(picture, Image.fromarray(self.palette[classes]), self.alpha)
        if "background" in self.names:
            foreground = classes != self.names.index("background")
            painted = Image.composite(painted, picture, Image.fromarray(foreground))
        # what is no class, pixels that are ignored, has no name
        named = [label for label in np.unique(classes).tolist() if label < len(self.names)]
        self._draw_legend(painted, [label for label in named if self.names[label] != "background"])
        return painted

    def _draw_legend(self, picture: Image.Image, labels: Sequence[int]) -> None:
        """Colour and name of `labels` on a dark box in the upper left corner; as many as there is room for."""
        if not labels or min(picture.size) < _SMALLEST:
            return
        size = max(10, min(picture.size) // 30)
        font, line = ImageFont.load_default(size), round(1.4 * size)
        room = (picture.height - size) // line
        shown = labels if len(labels) <= room else labels[: room - 1]
        texts = [self.names[label] for label in shown]
        if len(shown) < len(labels):
            texts.append(f"and {len(labels) - len(shown)} more")
        width = round(2.6 * size + max(font.getlength(text) for text in texts))
        box = Image.new("RGB", (min(width, picture.width), line * len(texts) + size // 2))
        corner = picture.crop((0, 0, *box.size))
        picture.paste(Image.blend(corner, box, 0.65))
        draw = ImageDraw.Draw(picture)
        for row, text in enumerate(texts):
            top = size // 4 + row * line
            if row < len(shown):
                colour = tuple(self.palette[shown[row]].tolist())
                draw.rectangle((size // 2, top + size // 4, size // 2 + size, top + size // 4 + size), colour, "white")
            draw.text((2 * size, top + size // 4 + size // 2), text, "white", font, anchor="lm")
