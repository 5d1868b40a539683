"""A GPU that is not there: PyTorch's CUDA functions on CPU tensors, and the core of the CPU emulation behind "cuda".

With it every line of the GPU tests and of the benchmarks runs on any machine. It finds errors of scripts, not of
kernels: it has no memory of its own, no streams, and its times mean nothing.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

TESTS = Path(__file__).resolve().parents[1]
NAME = "rehearsed GPU"
MEMORY = 1 << 37

os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton
sys.path[:0] = [str(TESTS.parent)]
sys.path += [str(TESTS / "simt"), str(TESTS / "triton"), str(TESTS / "gpu"), str(TESTS)]

CPU = torch.device("cpu")


def is_cuda(value: object) -> bool:
    """Whether a value asks for the GPU."""
    return (isinstance(value, torch.device) and value.type == "cuda") or (
        isinstance(value, str) and value.partition(":")[0] == "cuda"
    )


class OnCpu(TorchFunctionMode):
    """Tensors that are asked for on the GPU are made on the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.cuda:
            return args[0].clone()
        if func is torch.Tensor.to:
            args = tuple(CPU if is_cuda(value) else value for value in args)
        if is_cuda(kwargs.get("device")):
            kwargs["device"] = CPU
        return func(*args, **kwargs)


class Recording(TorchDispatchMode):
    """The operators that ran, to run them again."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable, tuple, dict, object]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result


class Graph:
    """Replays what was recorded with the numbers that its inputs have then."""

    def __init__(self) -> None:
        self.recording = Recording()

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, result in self.recording.calls:
            again = func(*args, **kwargs)
            results = (result, again) if torch.is_tensor(result) else None
            for old, new in [results] if results else zip(result or (), again or (), strict=True):
                if torch.is_tensor(old):
                    old.detach().copy_(new)


@contextmanager
def captured(graph: Graph, stream: object = None):
    with graph.recording:
        yield


class Event:
    def __init__(self, enable_timing: bool = False) -> None:
        self.when = 0.0

    def record(self, stream: object = None) -> None:
        self.when = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.when - self.when)


class Stream:
    cuda_stream = 0

    def __init__(self, *_: object) -> None: ...

    def wait_stream(self, other: Stream) -> None: ...

    def synchronize(self) -> None: ...


class Generator(torch._C.Generator):
    def __new__(cls, device: object = "cpu"):
        return super().__new__(cls, "cpu" if is_cuda(device) else device)


def properties(*_: object) -> SimpleNamespace:
    """Of a small Hopper."""
    return SimpleNamespace(
        name=NAME, major=9, minor=0, multi_processor_count=6, shared_memory_per_block_optin=227 << 10,
        L2_cache_size=1 << 12, total_memory=MEMORY,
    )  # fmt: skip


def nothing() -> Callable[..., None]:
    """A function that takes anything; each is another one, as Dynamo wants."""
    return lambda *_, **__: None


def install() -> None:
    """For the rest of this process."""
    here = OnCpu()

    allocations = {name: getattr(torch, name) for name in ("empty", "empty_like", "empty_strided")}

    def refuse(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. The rehearsal refuses it")

    def set_fraction(fraction: float, device: object = None) -> None:
        for name, allocate in allocations.items():
            setattr(torch, name, refuse if fraction < 1 else allocate)

    def set_device(device: object) -> None:
        if isinstance(device, torch.device) and device.index is None:
            raise ValueError(f"Expected a torch.device with a specified index or an integer, but got:{device}")

    replaced = {
        "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0, "set_device": set_device,
        "get_device_capability": lambda *_: (9, 0), "get_device_name": lambda *_: NAME,
        "get_device_properties": properties, "device": nullcontext, "stream": nullcontext, "Stream": Stream,
        "current_stream": lambda *_: Stream(), "Event": Event, "CUDAGraph": Graph, "graph": captured,
        "synchronize": nothing(), "empty_cache": nothing(), "set_sync_debug_mode": nothing(), "_sleep": nothing(),
        "memory_allocated": lambda *_: 0, "max_memory_allocated": lambda *_: 0, "memory_reserved": lambda *_: 0,
        "reset_peak_memory_stats": nothing(), "memory_stats": lambda *_: {"requested_bytes.all.current": 0},
        "mem_get_info": lambda *_: (MEMORY >> 2, MEMORY), "set_per_process_memory_fraction": set_fraction,
        "is_bf16_supported": lambda *_: True, "manual_seed": nothing(), "manual_seed_all": nothing(),
        "get_rng_state_all": list, "set_rng_state_all": nothing(),
    }  # fmt: skip
    for name, value in replaced.items():
        setattr(torch.cuda, name, value)
    torch._C._cuda_getCurrentRawStream = lambda index: 0
    torch.cuda.profiler.start, torch.cuda.profiler.stop = nothing(), nothing()
    torch.Generator = Generator
    torch.compile = lambda function, **_: function
    here.__enter__()
    _install_backends()


def _install_backends() -> None:
    import emulation
    from mends import mend_bf16, mend_repeated_patching

    from ema_ops import backends
    from ema_ops.backends import cuda
    from ema_ops.backends.triton import backend as triton

    class RehearsedBackend(cuda.CudaBackend):
        def _device_refusal(self, device):
            return super()._device_refusal(torch.device("cuda"))

        def current(self, device):
            return super().current(torch.device("cuda", 0))

    core = emulation.load_core()
    core.architectures = ("90a",)
    cuda.BACKEND = RehearsedBackend(core)
    backends.load.cache_clear()
    mend_bf16()
    mend_repeated_patching()
    triton.INTERPRETED_DTYPES = triton.DTYPES
