"""Pictures that are too large for the memory of a device: which ones, and what helps."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch


@contextmanager
def naming_size(count: int, height: int, width: int, scale: float) -> Iterator[None]:
    """Raises OSError (ENOMEM) with the size when the block, on `count` pictures at `scale`, runs out of memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = (
            f"no memory for pictures of {count} x {height} x {width} at scale {scale:g}: expected a smaller batch, "
            "fewer scales, or windows (mode 'slide')"
        )
        raise OSError(errno.ENOMEM, reason) from error


@contextmanager
def naming_pictures(names: Sequence[object]) -> Iterator[None]:
    """Raises OSError (ENOMEM) that begins with `names` when the block, on these pictures, runs out of memory."""
    try:
        yield
    except (torch.OutOfMemoryError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.ENOMEM:
            raise
        reason = error.strerror if isinstance(error, OSError) else "no memory: expected a smaller batch"
        raise OSError(errno.ENOMEM, f"{', '.join(map(str, names))}: {reason}") from error
