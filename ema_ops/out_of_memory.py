"""Errors that say that memory ran out, whatever had none."""

from __future__ import annotations

import torch

_WORDS = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "cublas_status_alloc_failed",
)
"""Of PyTorch's allocators on a CPU, its shared memory and its libraries, which raise RuntimeError."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that a device, or the machine itself, has no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)
