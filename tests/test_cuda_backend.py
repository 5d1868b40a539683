"""What the backend says about itself without a GPU: usable or not, and what it refuses."""

from __future__ import annotations

import importlib
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

import ema_ops
from ema_ops.backends.cuda import CudaBackend, backend
from ema_ops.backends.cuda.architectures import architecture_refusal
from ema_ops.backends.cuda.arguments import can_be_boxed
from ema_ops.backends.cuda.hopper import hopper_parts
from ema_ops.problem import Problem

CORE = SimpleNamespace(architectures=("80", "90a"), ptx_architectures=(), max_channels=1024, max_bases=256)


@pytest.fixture
def problem():
    problem = Problem.build(torch.zeros(1, 1, 5, 8), torch.zeros(1, 8, 3))
    return problem._replace(device=torch.device("cuda", 0))


@pytest.fixture
def gpus(monkeypatch):
    """Capabilities of the GPUs that torch sees; a test may change the list."""
    capabilities = [(9, 0)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capabilities[device.index])
    monkeypatch.setattr(torch.version, "hip", None)
    return capabilities


def test_cuda_comes_first():
    assert next(iter(ema_ops.available_backends())) == "cuda"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": torch.float64}, "dtype is torch.float64: expected float32, bfloat16 or float16"),
        ({"channels": 1025}, "C is 1025: expected at most 1024"),
        ({"value_channels": 1025}, "Cv is 1025: expected at most 1024"),
        ({"num_bases": 257}, "K is 257: expected at most 256"),
        ({"device": torch.device("cpu")}, "device is cpu: expected a CUDA device"),
        ({"batch": 2**26}, "B is 67108864"),
        ({"positions": 2**31 - 1}, "N is 2147483647: expected at most 2147483392"),
        ({"positions": 2**30, "channels": 1024, "batch": 8}, "N 1073741824"),
    ],
    ids=str,
)
def test_refusals_name_the_value_and_the_limit(problem, gpus, change, reason):
    assert CudaBackend(CORE).refuses(problem) is None
    assert reason in CudaBackend(CORE).refuses(problem._replace(**change))


def test_a_device_that_nothing_was_built_for(problem, gpus):
    gpus[:] = [(8, 9), (7, 5)]
    backend = CudaBackend(CORE)
    assert backend.unavailable() is None
    assert backend.refuses(problem) is None
    reason = backend.refuses(problem._replace(device=torch.device("cuda", 1)))
    assert reason.startswith("device cuda:1 has compute capability 7.5, and the compiled core was built for 80, 90a")
    gpus[:] = [(7, 5)]
    assert "has compute capability 7.5" in CudaBackend(CORE).unavailable()
    gpus[:] = []
    assert CudaBackend(CORE).unavailable() == "no CUDA device was found"


def test_another_kind_of_pytorch(gpus, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert CudaBackend(CORE).unavailable() == "this PyTorch is built for ROCm 6.4: expected one for CUDA"


def test_a_core_that_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ema_ops._C", None)
    monkeypatch.setattr(backend, "BUILD_RECORD", tmp_path / "record")
    reason = backend.load_core().unavailable()
    assert reason == "there is no compiled core ema_ops._C: ema_ops was not installed with pip"
    backend.BUILD_RECORD.write_text("the CUDA core is not compiled: nvcc was not found\n")
    reason = backend.load_core().unavailable()
    assert reason == "there is no compiled core ema_ops._C: the CUDA core is not compiled: nvcc was not found"


def test_a_core_that_does_not_load(monkeypatch):
    def broken(name):
        raise ImportError("undefined symbol: launch")

    monkeypatch.setattr(importlib, "import_module", broken)
    assert backend.load_core().unavailable() == "import ema_ops._C failed: undefined symbol: launch"


@pytest.mark.parametrize(
    ("architectures", "ptx", "capability", "runs"),
    [
        (("80",), (), (8, 0), True),
        (("80",), (), (8, 9), True),
        (("89",), (), (8, 6), False),
        (("80",), (), (9, 0), False),
        (("90a",), (), (9, 0), True),
        (("90",), (), (9, 0), True),
        (("100a",), (), (10, 3), False),
        (("100f",), (), (10, 3), True),
        (("103f",), (), (10, 0), False),
        (("120",), (), (12, 1), True),
        (("120",), (), (10, 0), False),
        ((), ("80",), (8, 0), True),
        ((), ("80",), (12, 0), True),
        ((), ("120",), (10, 0), False),
        ((), ("90a",), (10, 0), False),
        ((), ("90a",), (9, 0), True),
        ((), ("100f",), (12, 0), False),
        (("80", "86", "89", "90a", "100", "120"), ("120",), (7, 5), False),
        (("80", "86", "89", "90a", "100", "120"), ("120",), (13, 0), True),
        ((), (), (9, 0), False),
    ],
    ids=str,
)
def test_which_architectures_run_where(architectures, ptx, capability, runs):
    reason = architecture_refusal(architectures, ptx, capability)
    assert (reason is None) == runs
    if reason is not None:
        assert f"{capability[0]}.{capability[1]}" in reason
        assert all(name in reason for name in (*architectures, *ptx))


def test_tf32_follows_pytorch():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        for precision in ("tf32", "ieee"):
            matmul.fp32_precision = precision
            assert backend.tf32_allowed() == (precision == "tf32")
    finally:
        matmul.fp32_precision = before


@pytest.mark.parametrize(("index", "entered"), [(1, []), (0, ["enter 0", "exit 0"])])
def test_the_device_of_a_call_is_current_and_the_caller_s_comes_back(monkeypatch, index, entered):
    seen = []

    @contextmanager
    def guard(number):
        seen.append(f"enter {number}")
        try:
            yield
        finally:
            seen.append(f"exit {number}")

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device", guard)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda number: 100 + number, raising=False)

    def launch():
        current, number, stream = CudaBackend(CORE).current(torch.device("cuda", index))
        assert (number, stream) == (index, 100 + index)
        with current:
            assert seen == entered[:1]
            raise RuntimeError("the launch failed")

    with pytest.raises(RuntimeError, match="the launch failed"):
        launch()
    assert seen == entered


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", set()),
        ("0", set()),
        ("1", {"tiles", "overlap"}),
        ("tiles", {"tiles"}),
        ("overlap,tiles", {"tiles", "overlap"}),
        ("1,loop", {"tiles", "overlap", "loop"}),
        ("loop", {"loop"}),
    ],
)
def test_parts_of_hopper(text, parts, monkeypatch):
    monkeypatch.setenv("EMA_OPS_HOPPER", text)
    assert hopper_parts() == parts


@pytest.mark.parametrize(
    ("architectures", "overlap", "hopper"),
    [(("80", "90a"), True, True), (("90",), True, False), (("80", "100"), False, False)],
)
def test_kernels_overlap_only_if_they_wait(architectures, overlap, hopper, monkeypatch):
    """Those for older architectures run there from their PTX."""
    monkeypatch.setenv("EMA_OPS_HOPPER", "1")
    properties = SimpleNamespace(major=9, minor=0, multi_processor_count=132, shared_memory_per_block_optin=227 << 10)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    core = SimpleNamespace(
        architectures=architectures,
        hopper_by_default=False,
        Device=lambda *sizes, **wanted: wanted,
        plan=lambda described, device: device,
    )
    plan = CudaBackend(core).make_plan(None, torch.device("cuda", 0))
    assert (plan["overlap"], plan["hopper"]) == (overlap, hopper)


@pytest.mark.parametrize("text", ["tiles,wings", "0,tiles", "0,1"])
def test_unknown_part_of_hopper(text, monkeypatch):
    monkeypatch.setenv("EMA_OPS_HOPPER", text)
    with pytest.raises(ValueError, match=f"'{text}': expected 0 alone, 1, or of tiles, overlap, loop"):
        hopper_parts()


@pytest.mark.parametrize(
    ("x", "boxed"),
    [
        (torch.empty(2, 1, 9, 64, dtype=torch.bfloat16), True),
        (torch.empty(2, 1, 9, 68, dtype=torch.bfloat16), False),  # 136 bytes from position to position
        (torch.empty(2, 1, 9, 72, dtype=torch.bfloat16)[..., 1:65], False),  # starts 2 bytes too late
        (torch.empty(2, 1, 9, 72, dtype=torch.bfloat16)[..., 8:], True),
        (torch.empty(1, 1, 9, 64, dtype=torch.bfloat16).expand(2, 1, 9, 64), False),
    ],
)
def test_which_features_can_be_boxed(x, boxed):
    batch, head, position, channel = x.stride()
    assert can_be_boxed((x.data_ptr(), batch, head, position, channel, x.shape[3])) == boxed
    assert can_be_boxed((7, 7, 7, 7))
