"""Pictures from disk, with an error that names the file whatever is wrong with it."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from .errors import DataError

_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture of each EXIF orientation upright."""
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")


def open_picture(path: str | Path) -> Image.Image:
    """The decoded picture at `path`, in its own mode.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it is no picture, is cut short or damaged, or claims a size beyond Pillow's safety limit.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file: expected a picture")
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except UnidentifiedImageError:
        raise OSError(f"{path} is not a picture: expected a JPEG, PNG or other format that Pillow reads") from None
    except _DAMAGE as error:
        raise OSError(f"{path} is truncated or damaged ({error}): expected a whole picture") from error


def read_rgb(path: str | Path) -> Image.Image:
    """The picture at `path` as RGB, turned upright by its EXIF orientation.

    Grey, palette and CMYK pictures are converted, 16-bit grey keeps its upper eight bits, transparency is dropped.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it is no picture, is cut short or damaged (its EXIF data too), or claims a size beyond Pillow's safety
            limit.
        DataError: its pixels are 32-bit numbers, of which none is known to be white.
    """
    picture = open_picture(path)
    if picture.mode in ("I", "F"):
        raise DataError(f"{path} has 32-bit pixels (mode {picture.mode}): expected 8 or 16 bits")
    picture = upright(picture, path)
    if picture.mode in _SIXTEEN_BITS:
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return picture.convert("RGB")


def upright(picture: Image.Image, path: str | Path) -> Image.Image:
    """`picture`, read from `path`, turned by its EXIF orientation. Raises OSError when its EXIF data is damaged."""
    # Pillow's exif_transpose writes all EXIF data anew, and fails where another entry is damaged
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation)
    except _DAMAGE as error:
        raise OSError(f"{path} has damaged EXIF data ({error}): expected to read its orientation") from error
    return picture.transpose(_TURNS[orientation]) if orientation in _TURNS else picture
