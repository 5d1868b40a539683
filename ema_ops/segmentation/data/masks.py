"""The numbers stored in a mask, before they are labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .pictures import open_picture

_PNG = b"\x89PNG\r\n\x1a\n"
_DEPTH, _COLOUR_TYPE = 24, 25
_GREY = 0


def read_mask_picture(path: Path) -> np.ndarray:
    """The values of a palette or grey picture, integers [H, W]; those of a palette are its indices.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it is truncated or no picture.
        ValueError: it is in colour, a JPEG, or grey with 2 or 4 bits, whose values are labels to some programs and
            shades to others.
    """
    picture = open_picture(path)
    if picture.format == "JPEG":
        raise ValueError(f"mask {path} is a JPEG, which changes labels: expected a PNG, drawn anew from the source")
    if picture.mode not in ("P", "L", "1", "I;16"):
        raise ValueError(
            f"mask {path} has mode {picture.mode}: expected a palette or grey picture of labels (for one in colours: "
            "look up the label of each pixel's colour and save those as 8-bit grey)"
        )
    if picture.mode == "L" and (depth := _grey_depth(path)) in (2, 4):
        raise ValueError(f"mask {path} is grey with {depth} bits: expected 8 bits, or a palette")
    stored = np.asarray(picture)
    return stored.astype(np.uint8) if picture.mode == "1" else stored


def _grey_depth(path: Path) -> int:
    """Bits of a grey PNG; 8 for everything else."""
    with path.open("rb") as file:
        header = file.read(_COLOUR_TYPE + 1)
    return header[_DEPTH] if header.startswith(_PNG) and header[_COLOUR_TYPE] == _GREY else 8
