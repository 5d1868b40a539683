"""`EMAUnit` with and without its first convolution folded into the bases, on one thread of a CPU.

    python -m benchmarks.folding FOLDER

writes FOLDER/folding.md. Both take turns, and the table shows the ratio of neighbouring runs, plain over folded, as
20, 50 and 80 percent: above 1, folding is faster. Times are those of the processor, so that other processes on
the machine disturb less. The modes:

    operator    evaluation without a gradient, the whole unit as `ema_ops::em_unit`
    parts       the same with a group norm, which the operator does not serve
    training    forward and backward, the gradient of x and all parameters
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ema_ops import EMAUnit

from .environment import commit, device_name, now

# channels, height and width, bases
SHAPES = [
    *((64, 33, 64), (64, 97, 64), (128, 65, 64), (256, 33, 64), (256, 65, 64), (512, 33, 64), (512, 65, 64)),
    *((512, 97, 64), (64, 65, 16), (128, 65, 16), (256, 65, 32), (512, 65, 128)),
]
MODES = ("operator", "parts", "training")
DTYPES = (torch.float32, torch.bfloat16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the table")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "folding.md").open("w") as file:
        for line in table(options.repeats):
            print(line, flush=True)
            print(line, file=file, flush=True)


def table(repeats: int) -> Iterator[str]:
    """The lines of the table, measured as they are asked for."""
    yield f"{device_name(torch.device('cpu'))}, one thread, torch {torch.__version__}, {now()}, commit {commit()}."
    yield "B = 1, T = 3, contiguous images. Milliseconds without folding; ratio without / with folding, p20 p50 p80."
    yield ""
    yield "| dtype | C | H = W | K | " + " | ".join(f"{mode}, ms | ratio" for mode in MODES) + " |"
    yield "|---" * (4 + 2 * len(MODES)) + "|"
    for dtype, (channels, size, num_bases) in product(DTYPES, SHAPES):
        cells = [str(dtype).removeprefix("torch."), channels, size, num_bases]
        for mode in MODES:
            times = measure(channels, size, num_bases, dtype, mode, repeats)
            low, middle, high = np.percentile(times[0] / times[1], (20, 50, 80))
            cells += [f"{np.median(times[0]):.3g}", f"{low:.2f} **{middle:.2f}** {high:.2f}"]
        yield "| " + " | ".join(map(str, cells)) + " |"


def measure(channels: int, size: int, num_bases: int, dtype: torch.dtype, mode: str, repeats: int) -> np.ndarray:
    """Milliseconds [2, repeats] without and with folding, run in turns."""
    norm = partial(nn.GroupNorm, 32) if mode == "parts" else nn.BatchNorm2d
    unit = EMAUnit(channels, num_bases, norm_layer=norm).to(dtype).train(mode == "training")
    x = torch.randn(1, channels, size, size).to(dtype)
    step: Callable[[], None] = partial(train if mode == "training" else evaluate, unit, x)
    times = np.empty((2, repeats + 1))
    for repeat, folded in product(range(repeats + 1), (0, 1)):
        unit.fold = bool(folded)
        start = time.process_time()
        step()
        times[folded, repeat] = 1e3 * (time.process_time() - start)
    return times[:, 1:]


def evaluate(unit: EMAUnit, x: Tensor) -> None:
    with torch.no_grad():
        unit(x)


def train(unit: EMAUnit, x: Tensor) -> None:
    unit(x.detach().requires_grad_()).backward(torch.ones_like(x))


if __name__ == "__main__":
    main()
