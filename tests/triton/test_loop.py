"""The loop and its halves in the interpreter, against float64."""

from __future__ import annotations

from loop_tests import LoopTests
from parts_tests import PartsTests


class TestLoop(LoopTests):
    """Of this backend."""


class TestParts(PartsTests):
    """Of this backend."""
