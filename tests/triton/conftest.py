"""The kernels in Triton's interpreter, on the CPU. Needs a process of its own: `pytest tests/triton`.

Interpreted and compiled kernels cannot share a process, so the variable is set before anything imports triton.
"""

from __future__ import annotations

import os
import sys

import pytest
import torch

if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.exit("triton was imported before TRITON_INTERPRET=1 was set: run `pytest tests/triton` by itself", 2)
os.environ["TRITON_INTERPRET"] = "1"

from mends import mend_bf16, mend_repeated_patching

from ema_ops.backends.triton import backend

mend_bf16()
mend_repeated_patching()
pytest.register_assert_rewrite("backend_checks", "loop_tests", "parts_tests")
backend.INTERPRETED_DTYPES = backend.DTYPES


@pytest.fixture(name="backend")
def _backend():
    """Its name, for the tests of every backend."""
    return "triton"


@pytest.fixture(autouse=True)
def _poisoned_allocations(monkeypatch):
    """Memory that nobody wrote reads as NaN."""

    def poisoned(allocate):
        def allocate_poisoned(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return allocate_poisoned

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
