"""Results written by threads, so that the device does not wait for a disk or an encoder."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image


class Writer:
    """Runs calls in `threads` threads; one thread runs them in their order. A context manager that waits for all.

    At most `waiting` calls wait at a time, so that memory is bounded; `submit` waits when there are more. The error of
    a call is raised by a later `submit`, or on leaving. When the block raises, calls not begun are dropped.
    """

    def __init__(self, threads: int, waiting: int = 32) -> None:
        self._executor = ThreadPoolExecutor(threads)
        self._futures: deque[Future[object]] = deque()
        self._waiting = waiting

    def submit(self, call: Callable[..., object], *arguments: Any) -> None:
        """Run `call(*arguments)` in a thread. Raises what an earlier call raised."""
        while self._futures and (len(self._futures) >= self._waiting or self._futures[0].done()):
            self._futures.popleft().result()
        self._futures.append(self._executor.submit(call, *arguments))

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                while self._futures:
                    self._futures.popleft().result()
        finally:
            self._executor.shutdown(cancel_futures=True)


def save_png(picture: Image.Image, path: Path) -> None:
    """Write `picture` to `path` as PNG, with the folders above it. Raises OSError naming the file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, compress_level=3)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
