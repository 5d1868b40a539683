"""What the backend says about itself: usable or not, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.machinery import ModuleSpec

import pytest
import torch

import ema_ops
from ema_ops.backends.triton import BACKEND, backend
from ema_ops.problem import Problem


@pytest.fixture
def problem():
    return Problem.build(torch.zeros(1, 1, 5, 8), torch.zeros(1, 8, 3))


def test_the_interpreter_makes_the_cpu_usable(problem):
    assert ema_ops.available_backends()["triton"].usable
    assert BACKEND.unavailable() is None
    assert BACKEND.refuses(problem) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": torch.float64}, "float64"),
        ({"channels": 1025}, "C is 1025: expected at most 1024"),
        ({"value_channels": 1025}, "Cv is 1025: expected at most 1024"),
        ({"num_bases": 257}, "K is 257: expected at most 256"),
        ({"device": torch.device("cuda", 0)}, "cuda:0"),
    ],
    ids=str,
)
def test_refusals_name_the_value_and_the_limit(problem, change, reason):
    assert reason in BACKEND.refuses(problem._replace(**change))


def test_bfloat16_is_refused_where_the_interpreter_gets_it_wrong(problem, monkeypatch):
    monkeypatch.setattr(backend, "INTERPRETED_DTYPES", (torch.float32, torch.float16))
    assert "interpreter gets wrong" in BACKEND.refuses(problem._replace(dtype=torch.bfloat16))
    monkeypatch.delenv("TRITON_INTERPRET")
    assert BACKEND.refuses(problem._replace(dtype=torch.bfloat16)) == "device is cpu: expected a CUDA or ROCm device"


def test_a_refusal_reaches_the_caller():
    with pytest.raises(ValueError, match=r"'triton' cannot serve this call: dtype is torch\.float64"):
        ema_ops.em_attention(torch.zeros(1, 4, 8).double(), torch.zeros(8, 3).double(), backend="triton")


def test_without_the_interpreter_a_gpu_is_needed(problem, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert BACKEND.unavailable() == "no CUDA or ROCm device was found"
    assert BACKEND.refuses(problem) == "device is cpu: expected a CUDA or ROCm device"


@pytest.mark.parametrize(("capability", "refused"), [((7, 5), True), ((8, 0), False), ((12, 1), False)])
def test_old_gpus_are_refused(problem, monkeypatch, capability, refused):
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    reason = BACKEND.refuses(problem._replace(device=torch.device("cuda", 0)))
    assert (reason is not None and "7.5" in reason) == refused


@pytest.mark.parametrize("spec", [None, ModuleSpec("triton", None)], ids=["missing", "folder"])
def test_triton_that_is_not_installed(monkeypatch, spec):
    monkeypatch.setattr(backend, "installed", backend.installed.__wrapped__)  # without its cache
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: spec)
    assert BACKEND.unavailable() == "triton is not installed: pip install triton"


def test_triton_that_cannot_be_imported(monkeypatch):
    def broken(name):
        raise OSError("libdevice is broken")

    monkeypatch.setattr(backend, "import_failure", backend.import_failure.__wrapped__)  # without its cache
    monkeypatch.setattr(backend.importlib, "import_module", broken)
    assert BACKEND.unavailable() == "import triton failed: OSError: libdevice is broken"


def test_importing_the_backend_does_not_import_triton():
    code = "import sys, ema_ops.backends.triton; assert 'triton' not in sys.modules, sorted(sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
