"""Work done by several processes that do not outlive the one that asked for it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


def in_processes(task: Callable[[Key], Value], keys: Sequence[Key], jobs: int) -> Iterator[Value]:
    """`task(key)` for each of `keys` as they are done, in `jobs` fresh interpreters, as a user would start them.

    Whatever ends this process, also SIGKILL, ends them at once; so what they write must be whole at every moment. When
    `task` raises, the others are ended too. Raises what it raised, or BrokenProcessPool when a process was killed.
    """
    start = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, start, _end_with_parent) as pool:
        try:
            for future in as_completed([pool.submit(task, key) for key in keys]):
                yield future.result()
        except BaseException:
            for process in multiprocessing.active_children():
                process.kill()
            raise


def _end_with_parent() -> None:
    # a terminal sends Ctrl-C to all, and the parent then ends this one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
