"""Tests that need a GPU. Without one they are collected and skipped with the reason."""

from __future__ import annotations

import pytest
import torch
from calls import GPU_BACKENDS

import ema_ops


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    reason = "no GPU: torch.cuda.is_available() is False"
    for item in items:
        if "gpu" in item.path.parts:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(params=GPU_BACKENDS)
def backend(request) -> str:
    """The name of every GPU backend in turn; one that is not usable here is skipped with its reason."""
    status = ema_ops.available_backends()[request.param]
    if not status.usable:
        pytest.skip(f"backend {request.param}: {status.reason}")
    return request.param


@pytest.fixture(autouse=True)
def free_memory():
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
