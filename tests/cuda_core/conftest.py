"""The compiled core on the CPU behind the name "cuda", through the shim of tests/simt."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simt"))

import emulation
from emulated import EmulatedBackend, installed

pytest.register_assert_rewrite("backend_checks", "loop_tests", "parts_tests")


@pytest.fixture(scope="session")
def core():
    """The module, or with EMA_SIMT_SANITIZED=1 the one with sanitizers; skips where it cannot be built."""
    reason = emulation.missing()
    if reason is not None:
        pytest.skip(f"kernels cannot be executed on this machine: {reason}")
    return emulation.load_core(sanitized=os.environ.get("EMA_SIMT_SANITIZED") == "1")


@pytest.fixture
def emulated(core):
    """The backend that answers to "cuda" during a test."""
    backend = EmulatedBackend(core)
    with installed(backend):
        yield backend


@pytest.fixture
def backend(emulated):
    """Its name, for the tests of every backend."""
    return emulated.name
