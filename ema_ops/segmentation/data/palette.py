"""The colours in which labels are shown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def voc_palette() -> np.ndarray:
    """The 256 colours of PASCAL VOC, uint8 [256, 3]; row i is the colour of label i.

    The three lowest bits of the label become the highest bits of red, green and blue, the next three the bits below
    them, and so on: neighbouring labels get colours that are easy to tell apart.
    """
    labels = np.arange(256)
    palette = np.zeros((256, 3), dtype=np.uint8)
    for channel in range(3):
        for digit in range(3):
            palette[:, channel] |= (((labels >> (3 * digit + channel)) & 1) << (7 - digit)).astype(np.uint8)
    return palette


def palette_of(colours: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """A palette, uint8 [256, 3], that starts with `colours`; the rest is black."""
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[: len(colours)] = colours
    return palette
