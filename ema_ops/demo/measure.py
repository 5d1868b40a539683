"""Time and memory of one training step of each network."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..segmentation.data.generated.drawing import CLASSES
from .network import CONTEXTS, DemoNetwork
from .train import training_step


@dataclass(frozen=True)
class Cost:
    """Median milliseconds of a training step, and its peak memory in MiB beyond network and batch."""

    milliseconds: float
    peak_mib: float


def costs(
    images: Tensor, labels: Tensor, repeats: int, progress: Callable[[], object] = lambda: None
) -> dict[str, Cost]:
    """The cost of a step on `images` [B, 3, H, W] for every context layer.

    The networks take turns, so that whatever else slows the machine meets all of them. `progress` is called
    after every step.
    """
    steps = {name: _step(name, images, labels) for name in CONTEXTS}
    peaks = {name: _peak_memory(step) for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(1e3 * (time.perf_counter() - start))
            progress()
    return {name: Cost(statistics.median(times[name]), peaks[name] / 2**20) for name in steps}


def _step(name: str, images: Tensor, labels: Tensor) -> Callable[[], float]:
    network = DemoNetwork(name, len(CLASSES))
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    return lambda: training_step(network, optimizer, images, labels)


def _peak_memory(step: Callable[[], object]) -> int:
    """Bytes at the peak of the second call of `step` beyond what was there before, as PyTorch's profiler saw them.

    The private buffers of the matrix library are not seen.
    """
    step()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    level = peak = 0
    for _, size in changes:
        level += size
        peak = max(peak, level)
    return peak
