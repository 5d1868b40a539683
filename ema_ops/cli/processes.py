"""Which of the processes that torchrun started speaks when all of them fail alike."""

from __future__ import annotations

import os
import sys
import time

PATIENCE = 5.0
"""Seconds for which another process than the first keeps its error to itself."""


def is_first() -> bool:
    """Whether this is the first process of its machine, or the only one."""
    return os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) == "0"


def tell_error(text: str) -> None:
    """Print `text` to stderr, once where all processes of a machine have the same to tell.

    A mistake in the settings ends all of them. The others wait, and torchrun ends them as soon as the first one has
    spoken and gone. Who is still there then has an error of its own, such as a broken picture in its share.
    """
    if not is_first():
        time.sleep(PATIENCE)
    print(text, file=sys.stderr)
