"""What a run of the microbenchmark is asked for, validated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .case import DTYPES, MEMORY_ORDERS, MODES, Case
from .peers import BACKENDS, RIVALS

MAX_SEED = 2**31 - 1
SIZES = ((33, 33), (65, 65), (97, 97), (129, 129))
# named selections of (B, H, W), instead of batch x sizes: 2^20 positions in images of 4 thousand to a million
SELECTIONS = {"constant-work": ((256, 64, 64), (64, 128, 128), (16, 256, 256), (4, 512, 512), (1, 1024, 1024))}
QUICK = {
    "batch": (1,),
    "channels": 64,
    "bases": 16,
    "sizes": ((9, 9), (17, 17), (33, 33)),
    "seconds": 0.05,
    "peers": tuple(name for name in RIVALS if name != "official-compiled"),
}


@dataclass(frozen=True)
class Options:
    """The grid (batch x sizes x dtype x memory order x mode) and how it is measured; see `options`.

    `shapes` names one of `SELECTIONS` that takes the place of batch x sizes, or is None. `seconds` is the time for the
    repeats of one measurement; after `time_limit` seconds no further one starts.
    """

    device: torch.device
    dtype: tuple[str, ...]
    batch: tuple[int, ...]
    channels: int
    bases: int
    sizes: tuple[tuple[int, int], ...]
    shapes: str | None
    iters: int
    mode: tuple[str, ...]
    memory_order: tuple[str, ...]
    peers: tuple[str, ...]
    backends: tuple[str, ...]
    seconds: float
    time_limit: float
    seed: int
    out: Path

    def cases(self) -> list[Case]:
        """The grid without the modes, small cases first."""
        grid = [(batch, *size) for size in self.sizes for batch in self.batch]
        shapes = grid if self.shapes is None else SELECTIONS[self.shapes]
        cases = [
            Case(batch, self.channels, height, width, self.bases, self.iters, dtype, order)
            for dtype in self.dtype
            for order in self.memory_order
            for batch, height, width in shapes
        ]
        return sorted(cases, key=lambda case: case.batch * case.positions)


def options(*, device: str | None = None, quick: bool = False, **given: Any) -> Options:
    """Options with the defaults of the device (and of `quick`) for everything that is absent or None.

    Raises ValueError or TypeError naming the value and what was expected.
    """
    found = _device(device)
    gpu = found.type == "cuda"
    defaults: dict[str, Any] = {
        "dtype": ("bfloat16",) if gpu else ("float32",),
        "batch": (1, 16) if gpu else (1,),
        "channels": 512,
        "bases": 64,
        "sizes": SIZES,
        "shapes": None,
        "iters": 3,
        "mode": ("forward", "full"),
        "memory_order": ("contiguous",),
        "peers": tuple(RIVALS),
        "backends": BACKENDS,
        "seconds": 0.5,
        "time_limit": math.inf,
        "seed": 0,
        "out": Path("runs/bench"),
    }
    if quick:
        defaults |= QUICK
    chosen = {**defaults, **{name: value for name, value in given.items() if value is not None}}
    return _checked(Options(device=found, **chosen))


def _checked(asked: Options) -> Options:
    names = {"dtype": DTYPES, "mode": MODES, "memory_order": MEMORY_ORDERS, "peers": RIVALS, "backends": BACKENDS}
    for name, known in names.items():
        for value in getattr(asked, name):
            if value not in known:
                raise ValueError(f"{name} is {value!r}: expected one of {', '.join(known)}")
    if asked.shapes is not None and asked.shapes not in SELECTIONS:
        raise ValueError(f"shapes is {asked.shapes!r}: expected one of {', '.join(SELECTIONS)}")
    sides = [side for size in asked.sizes for side in size]
    counts = {"channels": [asked.channels], "bases": [asked.bases], "iters": [asked.iters]}
    for name, values in {**counts, "batch": asked.batch, "sizes": sides}.items():
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} is {value!r}: expected a whole number")
            if value < 1:
                raise ValueError(f"{name} is {value}: expected at least 1")
    for name in ("dtype", "batch", "sizes", "mode", "memory_order"):
        if not getattr(asked, name):
            raise ValueError(f"{name} is empty: expected at least one value")
    if not (asked.peers or asked.backends):
        raise ValueError("peers and backends are both empty: expected something to measure")
    if not 0 <= asked.seed <= MAX_SEED:
        raise ValueError(f"seed is {asked.seed}: expected 0 to {MAX_SEED}")
    if not (math.isfinite(asked.seconds) and asked.seconds > 0):
        raise ValueError(f"seconds is {asked.seconds}: expected a finite number above 0")
    if not asked.time_limit > 0:
        raise ValueError(f"time_limit is {asked.time_limit}: expected a number of seconds above 0")
    return asked


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    expected = "expected cpu, cuda or cuda:0"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}: {expected}") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {name!r}: {expected}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device is {name!r}: expected a present GPU, PyTorch sees {torch.cuda.device_count()}")
    # one without a number cannot be made the current one
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device
