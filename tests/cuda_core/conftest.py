"""The compiled core on the CPU behind the name "cuda", through the shim of tests/simt."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simt"))

import emulation
import torch
from emulated import EmulatedBackend, poison

from ema_ops import backends
from ema_ops.backends import cuda


@pytest.fixture(scope="session")
def core():
    """The module, or with EMA_SIMT_SANITIZED=1 the one with sanitizers; skips where it cannot be built."""
    reason = emulation.missing()
    if reason is not None:
        pytest.skip(f"kernels cannot be executed on this machine: {reason}")
    return emulation.load_core(sanitized=os.environ.get("EMA_SIMT_SANITIZED") == "1")


@pytest.fixture
def emulated(core, monkeypatch):
    """The backend that answers to "cuda" during a test. Memory that nobody wrote reads as NaN."""
    backend = EmulatedBackend(core)
    monkeypatch.setattr(cuda, "BACKEND", backend)
    backends.load.cache_clear()

    def poisoned(allocate):
        return lambda *args, **kwargs: poison(allocate(*args, **kwargs))

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty_strided", poisoned(torch.Tensor.new_empty_strided))
    yield backend
    backends.load.cache_clear()
