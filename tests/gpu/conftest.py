"""Tests that need a GPU. Without one they are collected and skipped with the reason."""

from __future__ import annotations

import json
import os
import time

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
def free_memory(request):
    """Also ends a process whose GPU context is lost, as no test in it can pass any more."""
    yield
    if not torch.cuda.is_available():
        return
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError as error:
        if "PYTEST_XDIST_WORKER" in os.environ:
            time.sleep(1)  # until what the test said is sent
            os._exit(3)  # a new worker runs the others
        pytest.exit(f"the GPU is lost behind {request.node.nodeid}: {error}", returncode=3)


def pytest_runtest_logstart(nodeid):
    write_record(nodeid, "started")


def pytest_runtest_logreport(report):
    if report.when == "call" or report.outcome != "passed":
        write_record(report.nodeid, report.outcome, report.duration, dict(report.user_properties))


def write_record(test: str, outcome: str, seconds: float = 0.0, recorded: dict[str, object] | None = None) -> None:
    """A line of EMA_OPS_TEST_RECORD, at once, so that nothing is lost with a process that is stopped."""
    path = os.environ.get("EMA_OPS_TEST_RECORD")
    if path is None or "PYTEST_XDIST_WORKER" in os.environ:
        return
    line = {"test": test, "outcome": outcome, "seconds": round(seconds, 2), "recorded": recorded or {}}
    with open(path, "a") as file:
        file.write(json.dumps(line) + "\n")
