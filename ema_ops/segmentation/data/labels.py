"""What the numbers in a mask mean: stored values to labels of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .errors import DataError
from .palette import voc_palette

IGNORE = 255
"""The label of pixels that belong to no class (VOC draws it around objects); not trained on, not judged."""

_UNKNOWN = -1


class Labels:
    """The classes of a data set, their colours, and which stored value of a mask means which class.

    Args:
        classes: names; class i has label i. At most 255, as 255 is `IGNORE`.
        values: the label, or `IGNORE`, of each value that a mask may hold; by default every label is stored as it is.
            The value 255 always means `IGNORE`.
        palette: colours of the labels, uint8 [256, 3]; by default those of PASCAL VOC.

    Raises:
        ValueError: no class or more than 255 of them, or a name twice.
        TypeError: a name is no string.
    """

    def __init__(
        self, classes: Sequence[str], values: Mapping[int, int] | None = None, palette: np.ndarray | None = None
    ):
        self.classes = tuple(classes)
        for name in self.classes:
            if not isinstance(name, str):
                raise TypeError(f"class name is {name!r}: expected a string")
            if self.classes.count(name) > 1:
                raise ValueError(f"class {name!r} is named twice: expected different names")
        if not 1 <= len(self.classes) <= IGNORE:
            raise ValueError(f"there are {len(self.classes)} classes: expected 1 to {IGNORE}")
        if values is None:
            values = {label: label for label in range(len(self.classes))}
        self.palette = voc_palette() if palette is None else palette
        self._stored = sorted(set(values) - {IGNORE})
        self._table = np.full(256, _UNKNOWN, dtype=np.int16)
        self._table[IGNORE] = IGNORE
        for value, label in values.items():
            self._table[value] = label

    def read(self, stored: np.ndarray, path: Path) -> np.ndarray:
        """Labels, int16 [H, W], of the integers [H, W] stored in the mask `path`.

        Raises DataError naming `path` for a value that means nothing.
        """
        if stored.dtype != np.uint8:
            self._check(stored, (stored < 0) | (stored > IGNORE), path)
        labels = self._table[stored]
        self._check(stored, labels == _UNKNOWN, path)
        return labels

    def _check(self, stored: np.ndarray, wrong: np.ndarray, path: Path) -> None:
        if wrong.any():
            raise DataError(
                f"mask {path} has label {stored[wrong][0]}: expected {_ranges(self._stored)}, or {IGNORE} for ignore"
            )


def class_names(
    classes: Sequence[str] | None, num_classes: int | None, default: Sequence[str] | None = None
) -> tuple[str, ...]:
    """The names in `classes`, else `default`, else "class 0", "class 1", ...; `num_classes` of them if it is given.

    Raises:
        ValueError: `classes` has another length than `num_classes`, or nothing says how many classes there are.
        TypeError: `classes` is no list of names, or `num_classes` no whole number.
    """
    if classes is not None and (isinstance(classes, str) or not isinstance(classes, Sequence)):
        raise TypeError(f"classes is {classes!r}: expected a list of names")
    if num_classes is not None and (not isinstance(num_classes, int) or isinstance(num_classes, bool)):
        raise TypeError(f"num_classes is {num_classes!r}: expected a whole number")
    if classes is not None:
        if num_classes not in (None, len(classes)):
            raise ValueError(f"num_classes is {num_classes}: expected {len(classes)} as there are names in classes")
        return tuple(classes)
    if num_classes is None:
        if default is None:
            raise ValueError(
                "classes and num_classes are missing: expected one of them among the options of the data set, such as "
                "classes=[sky, sea]"
            )
        return tuple(default)
    if default is not None and num_classes == len(default):
        return tuple(default)
    return tuple(f"class {label}" for label in range(num_classes))


def _ranges(values: Sequence[int]) -> str:
    """ "0 to 3, 7" of [0, 1, 2, 3, 7]."""
    starts = [value for value in values if value - 1 not in values]
    ends = [value for value in values if value + 1 not in values]
    return ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in zip(starts, ends, strict=True))
