"""Python objects in training files of mmengine, which lie beside the weights: read as nothing, and never made."""

from __future__ import annotations

from contextlib import AbstractContextManager

from torch.serialization import safe_globals

_NAMES = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    # a buffer names its methods by attribute
    "builtins.getattr",
    # what it counted, and single numbers of the run
    "numpy.ndarray",
    "numpy.dtype",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
)
"""What the log in a file of mmengine's runner asks for, in the words of numpy 1 and 2."""


class PythonObject:
    """Stands for any object or function of `_NAMES`: takes every argument and state, and keeps none."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def left_out() -> AbstractContextManager[None]:
    """Inside the block `torch.load(weights_only=True)` puts a `PythonObject` where a file asks for one of `_NAMES`."""
    return safe_globals([(PythonObject, name) for name in _NAMES])
