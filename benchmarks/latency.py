"""What a call from Python costs over the replay of its graph: one image, forward, microseconds of the wall.

    python -m benchmarks.latency FILE.csv [--device cuda:0]

A call is timed from its start to its result on the GPU, with nothing left to do before; so is a replay. `python` is the
time until the call returns, which is what it costs when the GPU has other work. The inputs stay in the L2 cache.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import torch

import ema_ops
from ema_ops.backends import MODULES, load

from .case import Case, draw
from .peers import name_of

CHANNELS, NUM_BASES, SIZES = 512, 64, (33, 65, 129)
COLUMNS = ("peer", "height", "call_us", "replay_us", "overhead_us", "python_us")
WARM_UP, REPEATS = 20, 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="CSV file")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.writer(file)
        for line in chain([COLUMNS], measure(options.device)):
            print(*line, sep=",", flush=True)
            writer.writerow(line)
            file.flush()


def measure(device: torch.device, repeats: int = REPEATS) -> Iterator[tuple[str, ...]]:
    """A line for every backend that is usable and every size, times as text."""
    for backend in MODULES:
        if load(backend).unavailable() is not None:
            continue
        for side in SIZES:
            inputs = draw(Case(1, CHANNELS, side, side, NUM_BASES, 3, "bfloat16", "channels_last"), device, seed=0)

            def call(inputs=inputs, backend=backend) -> object:
                with torch.no_grad():
                    return ema_ops.em_attention(inputs.x, inputs.bases, backend=backend)

            whole, returned = _wall(call, device, repeats)
            graph = _capture(call, device)
            replayed, _ = _wall(graph.replay, device, repeats)
            times = (whole, replayed, whole - replayed, returned)
            yield name_of(backend), str(side), *(f"{value:.2f}" for value in times)


def _capture(call: Callable[[], object], device: torch.device) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        call()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        call()
    return graph


def _wall(run: Callable[[], object], device: torch.device, repeats: int) -> tuple[float, float]:
    """Median microseconds until the GPU has done `run`, and until `run` returns."""
    times = np.empty((2, WARM_UP + repeats))
    for index in range(WARM_UP + repeats):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        run()
        returned = time.perf_counter()
        torch.cuda.synchronize(device)
        times[:, index] = time.perf_counter() - start, returned - start
    whole, returned = 1e6 * np.median(times[:, WARM_UP:], axis=1)
    return float(whole), float(returned)


if __name__ == "__main__":
    main()
