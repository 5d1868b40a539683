"""Pictures that are too large for the memory of a device: which ones, and what helps."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ...out_of_memory import is_out_of_memory


@contextmanager
def naming_size(count: int, height: int, width: int, scale: float) -> Iterator[None]:
    """Raises OSError (ENOMEM) with the size when the block, on `count` pictures at `scale`, runs out of memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
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
    except (RuntimeError, MemoryError, OSError) as error:
        if not (error.errno == errno.ENOMEM if isinstance(error, OSError) else is_out_of_memory(error)):
            raise
        reason = error.strerror if isinstance(error, OSError) else "no memory: expected a smaller batch"
        raise OSError(errno.ENOMEM, f"{', '.join(map(str, names))}: {reason}") from error
