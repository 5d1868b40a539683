"""The numbers stored in a mask, before they are labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .errors import DataError
from .pictures import open_picture

_PNG = b"\x89PNG\r\n\x1a\n"
_DEPTH, _COLOUR_TYPE = 24, 25
_GREY = 0


def read_mask_picture(path: Path) -> np.ndarray:
    """The values of a palette or grey picture, integers [H, W]; those of a palette are its indices.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it is truncated or no picture.
        DataError: it is in colour, a JPEG, or grey with 2 or 4 bits, whose values are labels to some programs and
            shades to others.
    """
    picture = open_picture(path)
    if picture.format == "JPEG":
        raise DataError(f"mask {path} is a JPEG, which changes labels: expected a PNG, drawn anew from the source")
    if picture.mode not in ("P", "L", "1", "I;16"):
        raise DataError(
            f"mask {path} has mode {picture.mode}: expected a palette or grey picture of labels (for one in colours: "
            "look up the label of each pixel's colour and save those as 8-bit grey)"
        )
    if picture.mode == "L" and (depth := _grey_depth(path)) in (2, 4):
        raise DataError(f"mask {path} is grey with {depth} bits: expected 8 bits, or a palette")
    stored = np.asarray(picture)
    return stored.astype(np.uint8) if picture.mode == "1" else stored


def _grey_depth(path: Path) -> int:
    """Bits of a grey PNG; 8 for everything else."""
    with path.open("rb") as file:
        header = file.read(_COLOUR_TYPE + 1)
    return header[_DEPTH] if header.startswith(_PNG) and header[_COLOUR_TYPE] == _GREY else 8


def read_mask_matlab(path: Path, fields: Sequence[str]) -> np.ndarray:
    """The integers [H, W] of a MATLAB file, found by going from field to field, such as ("GTcls", "Segmentation").

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it is truncated or no MATLAB file of version 5 to 7.
        DataError: it holds no integer matrix there.
    """
    from scipy.io import loadmat

    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file: expected a mask")
    try:
        value = loadmat(path, variable_names=[fields[0]])
    except Exception as error:  # whatever a damaged file leads scipy into
        raise OSError(f"{path} is truncated or no MATLAB file ({error}): expected a mask") from error
    name = ".".join(fields)
    for field in fields:
        try:
            value = value[field]
        except (KeyError, ValueError, IndexError, TypeError):
            raise DataError(f"mask {path} has no field {field}: expected the labels in {name}") from None
        # MATLAB knows matrices only: a structure is one of 1 x 1, and so is what it holds
        if isinstance(value, np.ndarray) and value.shape == (1, 1) and value.dtype.kind in "OV":
            value = value[0, 0]
    if not isinstance(value, np.ndarray) or value.ndim != 2 or value.dtype.kind not in "iu":
        raise DataError(f"mask {path} has {_described(value)} in {name}: expected a matrix of integers")
    return value


def _described(value: object) -> str:
    return f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
