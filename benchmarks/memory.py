"""Peak extra memory of a workload, and running out of memory as an answer instead of a killed process."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from .workload import Workload

# the profiler's tracer otherwise prints its own start and stop lines between the progress bars
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
STEP = "benchmark_step"
SHARE_OF_FREE_MEMORY = 0.85


def extra_memory(workload: Workload, device: torch.device) -> int:
    """Bytes at the peak of the timed step beyond what was there before: results, temporaries and, for backward,
    what forward kept. CUDA: PyTorch's allocator statistics. CPU: allocations seen by PyTorch's profiler, thus
    without the private buffers of the matrix library."""
    gc.collect()
    return _on_cuda(workload, device) if device.type == "cuda" else _on_cpu(workload)


@contextlib.contextmanager
def limited_to_free_memory(device: torch.device) -> Iterator[None]:
    """On Linux CPUs: an allocation beyond most of the free memory fails, where the kernel would kill the process."""
    if device.type != "cpu" or sys.platform != "linux":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = _kilobytes("/proc/self/status", "VmSize") + int(
        SHARE_OF_FREE_MEMORY * _kilobytes("/proc/meminfo", "MemAvailable")
    )
    bounds = [value for value in (soft, hard) if value != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([limit * 1024, *bounds]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _on_cuda(workload: Workload, device: torch.device) -> int:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    prepared = workload.prepare()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    workload.step(prepared)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _on_cpu(workload: Workload) -> int:
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        prepared = workload.prepare()
        with torch.profiler.record_function(STEP):
            workload.step(prepared)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    return _peak(events)


def _peak(events: list[dict]) -> int:
    """Highest sum of allocations and frees since the start, at any time from the start of the step on."""
    begin = next(event["ts"] for event in events if event.get("name") == STEP)
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    level = sum(size for when, size in changes if when < begin)
    peak = level
    for when, size in changes:
        if when >= begin:
            level += size
            peak = max(peak, level)
    return peak


def _kilobytes(path: str, name: str) -> int:
    """The value of a "Name:  123 kB" line."""
    for line in Path(path).read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise OSError(f"{path} has no line {name}")
