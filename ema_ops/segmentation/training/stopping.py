"""A request to stop, from Ctrl-C or from a cluster that wants its machine back."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAME_REQUEST = 1.0
"""Seconds in which a second signal is the first one once more: torchrun passes on what the terminal sent to all."""


class StopRequest:
    """Inside the block, SIGINT and SIGTERM are remembered in `signal`; a later second one kills at once.

    Processes forked in the block (data loading) do not care for either. Outside of Python's main thread, which alone
    may handle signals, nothing is caught.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._time = 0.0
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:
            return
        if self.signal is None:
            self.signal, self._time = number, time.monotonic()
        elif time.monotonic() - self._time > _SAME_REQUEST:
            signal.signal(number, signal.SIG_DFL)
            os.kill(self._process, number)
