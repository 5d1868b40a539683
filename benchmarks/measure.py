"""Percentiles of the time of a workload. The check and the memory measurement before it are the warm-up."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from .workload import Workload

MIN_REPEATS, MAX_REPEATS = 3, 1000


@dataclass(frozen=True)
class Timing:
    """Percentiles 20, 50 and 80 in milliseconds of `repeats` runs."""

    p20: float
    p50: float
    p80: float
    repeats: int


def time_workload(workload: Workload, device: torch.device, seconds: float) -> Timing:
    """Wall time on a CPU, time between events on a GPU (launches by Python included), for about `seconds`."""
    if device.type == "cuda":
        return _time_on_cuda(workload.prepare, workload.step, device, seconds, idle=True)
    samples: list[float] = []
    while len(samples) < MIN_REPEATS or (sum(samples) < seconds and len(samples) < MAX_REPEATS):
        prepared = workload.prepare()
        start = time.perf_counter()
        workload.step(prepared)
        samples.append(time.perf_counter() - start)
    return _timing([1e3 * sample for sample in samples])


def time_graph(workload: Workload, device: torch.device, seconds: float) -> Timing:
    """Time of the timed step captured in a CUDA graph and replayed: no launch by Python in it.

    RuntimeError when the step cannot be captured.
    """
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(MIN_REPEATS):
            workload.step(workload.prepare(), keep=True)
        prepared = workload.prepare()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        results = workload.step(prepared, keep=True)
    timing = _time_on_cuda(lambda: None, lambda _: graph.replay(), device, seconds, idle=False)
    del results
    return timing


def _time_on_cuda(prepare, step, device: torch.device, seconds: float, *, idle: bool) -> Timing:
    """Each run starts with a cold L2 cache, as the floor counts reads from device memory. With `idle` nothing else is
    left to do then, so that the GPU waits for launches; without, they are made while it is busy."""
    cache = torch.empty(4 * torch.cuda.get_device_properties(device).L2_cache_size, dtype=torch.int8, device=device)

    def run() -> tuple[torch.cuda.Event, torch.cuda.Event]:
        prepared = prepare()
        cache.zero_()
        if idle:
            torch.cuda.synchronize(device)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step(prepared)
        end.record()
        return start, end

    begin = time.perf_counter()
    run()[1].synchronize()
    repeats = int(seconds / (time.perf_counter() - begin))
    events = [run() for _ in range(min(MAX_REPEATS, max(MIN_REPEATS, repeats)))]
    torch.cuda.synchronize(device)
    return _timing([start.elapsed_time(end) for start, end in events])


def _timing(milliseconds: list[float]) -> Timing:
    p20, p50, p80 = (float(value) for value in np.percentile(milliseconds, (20, 50, 80)))
    return Timing(p20, p50, p80, len(milliseconds))
