"""Pictures from disk, with an error that names the file whatever is wrong with it."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from PIL import Image, UnidentifiedImageError

_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


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
