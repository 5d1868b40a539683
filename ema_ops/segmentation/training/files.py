"""Files that are whole or not there: written aside, made durable, put in their place at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PART = ".part"
"""Ending of a file that is being written."""


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
        reason = f"{_first_line(error)}; {shutil.disk_usage(path.parent).free / 2**20:.1f} MiB are free there"
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
