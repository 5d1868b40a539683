"""Files that are whole or not there: written aside, made durable, put in their place at once; and one writer only."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

PART = ".part"
"""Ending of a file that is being written."""

LOCK = ".lock"
"""File in a folder that one run has for itself; it stays there, and only its lock counts."""

PATIENCE = 10.0
"""Seconds to wait for a folder: data workers of a run that was killed need some of them to see that it is gone."""


class Folder:
    """A folder that one run at a time writes to.

    The lock ends with its process, however that ends.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path / LOCK)

    def take(self) -> None:
        """Make it if it is not there, and wait for it.

        Raises:
            OSError: another run still has it, or it cannot be made.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=PATIENCE)
        except Timeout as error:
            raise OSError(f"{self.path} is in use by another run: expected a folder of its own for each run") from error

    def leave(self) -> None:
        """Let others have it; nothing happens if it was not taken."""
        self._lock.release()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; when the block ends, what is there takes the place of `path`.

    Whatever happens, `path` holds the old content or the new one, also after a crash of the machine.

    Raises:
        OSError: it could not be written, for instance because the disk is full. The old content stays.
    """
    part = path.with_name(path.name + PART)
    try:
        yield part
        _make_durable(part)
        os.replace(part, path)
    # torch.save tells a full disk by a RuntimeError
    except (OSError, RuntimeError) as error:
        reason = _first_line(error)
        if path.parent.is_dir():
            reason += f"; {shutil.disk_usage(path.parent).free / 2**20:.1f} MiB are free there"
        part.unlink(missing_ok=True)
        kept = "the one before it is kept" if path.exists() else "there was none before it"
        raise OSError(f"{path} could not be written ({reason}): {kept}") from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _make_durable(path.parent)


def remove_parts(folder: Path) -> None:
    """Remove what a run that was killed while it wrote left in `folder`."""
    for part in folder.glob("*" + PART):
        part.unlink()


def _make_durable(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
