"""The least time EM attention can take on a device: fewest bytes over its bandwidth, fewest operations over its rate.

Forward reads x and writes y, and needs 2T + 1 products of 2 N C K operations; backward reads x and the gradient of y
and writes that of x, and needs 5T + 2. Each pass takes at least the larger of its two times; full is their sum.

The unit in evaluation reads x and writes its result, and needs the products of the forward pass and one of 2 N C C
operations: its first convolution can be applied to the bases.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from ema_ops.problem import arithmetic_dtype

from .case import DTYPES, Case

COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
REPEATS = 5


@dataclass(frozen=True)
class Rates:
    """Bandwidth in bytes a second (read + written), rate of products in operations a second, where both are from."""

    bandwidth: float
    operations: float
    source: str


# measured once with large tensors; the rate is that of bfloat16 products
H200 = Rates(4.3e12, 788e12, "H200 constants")


@dataclass(frozen=True)
class Floor:
    """The floor in seconds, and which of "memory" and "arithmetic" sets it (that of the longer pass for full)."""

    seconds: float
    bound: str


def floor(case: Case, mode: str, rates: Rates) -> Floor:
    """The floor of `mode` ("forward", "backward", "full" or "unit")."""
    if mode == "full":
        passes = floor(case, "forward", rates), floor(case, "backward", rates)
        longer = max(passes, key=lambda one: one.seconds)
        return Floor(passes[0].seconds + passes[1].seconds, longer.bound)
    memory, arithmetic = times(case, mode, rates)
    return Floor(max(memory, arithmetic), "memory" if memory > arithmetic else "arithmetic")


def times(case: Case, mode: str, rates: Rates) -> tuple[float, float]:
    """Seconds for the bytes and for the operations of one pass."""
    results, products = (2, 5 * case.num_iters + 2) if mode == "backward" else (1, 2 * case.num_iters + 1)
    elements = case.batch * case.positions * case.channels
    of_x, of_result = case.element_sizes
    nbytes = (of_x + results * of_result) * elements
    width = products * case.num_bases + (case.channels if mode == "unit" else 0)
    return nbytes / rates.bandwidth, 2 * elements * width / rates.operations


def rates_of(device: torch.device, dtype: str) -> Rates:
    """Known constants for bfloat16 products on an H200; elsewhere a large copy and a large product are timed now."""
    is_bfloat16 = arithmetic_dtype(DTYPES[dtype]) == torch.bfloat16
    if device.type == "cuda" and is_bfloat16 and "H200" in torch.cuda.get_device_name(device):
        return H200
    return measure_rates(device, dtype, COPY_BYTES[device.type], MATRIX_SIDE[device.type])


def measure_rates(device: torch.device, dtype: str, copy_bytes: int, side: int) -> Rates:
    """The rates of the best of a few runs of a copy of `copy_bytes` and a product of `side` x `side` matrices."""
    source = torch.ones(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    left = torch.randn(side, side, device=device).to(arithmetic_dtype(DTYPES[dtype]))
    right, result = left.flip(0), torch.empty_like(left)
    copy = _best(lambda: target.copy_(source), device)
    product = _best(lambda: torch.mm(left, right, out=result), device)
    return Rates(2 * copy_bytes / copy, 2 * side**3 / product, "measured in this run")


def _best(function, device: torch.device) -> float:
    """Shortest of a few runs in seconds, after one that warms up."""
    seconds = []
    for _ in range(REPEATS + 1):
        _synchronize(device)
        start = time.perf_counter()
        function()
        _synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
