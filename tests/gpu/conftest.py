"""Tests that need a GPU. Without one they are collected and skipped with the reason."""

import pytest
import torch


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    reason = "no GPU: torch.cuda.is_available() is False"
    for item in items:
        if "gpu" in item.path.parts:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def free_memory():
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
