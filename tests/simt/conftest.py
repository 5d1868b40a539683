import os

import emulation
import pytest
import torch
from emulated_backend import EmulatedBackend

from ema_ops import backends
from ema_ops.backends import cuda


@pytest.fixture(scope="session", autouse=True)
def can_build():
    reason = emulation.missing()
    if reason is not None:
        pytest.skip(f"kernels cannot be executed on this machine: {reason}")


@pytest.fixture(scope="session")
def core(can_build):
    """All of csrc for the processor: as EMA_SIMT_CORE, or built now, with sanitizers if EMA_SIMT_SANITIZED=1."""
    given = os.environ.get("EMA_SIMT_CORE")
    sanitized = os.environ.get("EMA_SIMT_SANITIZED") == "1"
    return emulation.load_module(given or emulation.build_core(sanitized=sanitized))


@pytest.fixture
def use_device(core, monkeypatch):
    """Call it to let backend "cuda" serve CPU tensors with the plans of a device; see EmulatedBackend."""

    def use(**properties):
        monkeypatch.setattr(cuda, "BACKEND", EmulatedBackend(core, **properties))
        backends.load.cache_clear()

    yield use
    monkeypatch.undo()
    backends.load.cache_clear()


@pytest.fixture
def poisoned(monkeypatch):
    """Memory that nobody wrote reads as NaN."""

    def poisoning(allocate):
        def allocate_poisoned(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            tensor.untyped_storage().fill_(255)
            return tensor

        return allocate_poisoned

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poisoning(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoning(torch.Tensor.new_empty))
