"""`EMAUnit` with and without its first convolution folded into the bases.

    python -m benchmarks.folding FOLDER                              one thread of a CPU
    python -m benchmarks.folding FOLDER --device cuda --batch 1 16

write FOLDER/folding.md. Both take turns, and the table shows the ratio of neighbouring runs, plain over folded, as
20, 50 and 80 percent: above 1, folding is faster. On a CPU times are those of the processor, so that other processes
on the machine disturb less; on a GPU they are wall times with the launches by Python. The modes:

    operator    evaluation without a gradient, the whole unit as `ema_ops::em_unit`
    group norm  the same with a norm that the operator does not serve: the loop behind the convolution alone is one
    training    forward and backward, the gradient of x and all parameters
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
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
    *product((64, 256, 512), (33, 65, 129), (64,)),
    *((128, 65, 64), (64, 65, 16), (128, 65, 16), (256, 65, 32), (512, 65, 128)),
]
MODES = ("operator", "group norm", "training")
DTYPES = (torch.float32, torch.bfloat16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the table")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "folding.md").open("w") as file:
        for line in table(options.device, options.batch, options.repeats):
            print(line, flush=True)
            print(line, file=file, flush=True)


def table(device: torch.device, batches: list[int], repeats: int) -> Iterator[str]:
    """The lines of the table, measured as they are asked for."""
    threads = ", one thread" if device.type == "cpu" else ""
    yield f"{device_name(device)}{threads}, torch {torch.__version__}, {now()}, commit {commit()}."
    yield "T = 3, contiguous images. Milliseconds without folding; ratio without / with folding, p20 p50 p80."
    yield ""
    yield "| dtype | B | C | H = W | K | " + " | ".join(f"{mode}, ms | ratio" for mode in MODES) + " |"
    yield "|---" * (5 + 2 * len(MODES)) + "|"
    for dtype, batch, (channels, size, num_bases) in product(DTYPES, batches, SHAPES):
        cells: list[object] = [str(dtype).removeprefix("torch."), batch, channels, size, num_bases]
        x = torch.randn(batch, channels, size, size, device=device).to(dtype)
        for mode in MODES:
            plain, folded = measure(x, num_bases, mode, repeats)
            low, middle, high = np.percentile(plain / folded, (20, 50, 80))
            cells += [f"{np.median(plain):.3g}", f"{low:.2f} **{middle:.2f}** {high:.2f}"]
        yield "| " + " | ".join(map(str, cells)) + " |"


def measure(x: Tensor, num_bases: int, mode: str, repeats: int) -> np.ndarray:
    """Milliseconds [2, repeats] without and with folding, run in turns."""
    norm = partial(nn.GroupNorm, 32) if mode == "group norm" else nn.BatchNorm2d
    unit = EMAUnit(x.shape[1], num_bases, norm_layer=norm).to(x.device, x.dtype).train(mode == "training")
    step = partial(train if mode == "training" else evaluate, unit, x)
    times = np.empty((2, repeats + 1))
    for repeat, folded in product(range(repeats + 1), (0, 1)):
        unit.fold = bool(folded)
        start = clock(x.device)
        step()
        times[folded, repeat] = 1e3 * (clock(x.device) - start)
    return times[:, 1:]


def clock(device: torch.device) -> float:
    """Seconds of the processor, or, on a GPU with nothing left to do, of the wall."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def evaluate(unit: EMAUnit, x: Tensor) -> None:
    with torch.no_grad():
        unit(x)


def train(unit: EMAUnit, x: Tensor) -> None:
    unit(x.detach().requires_grad_()).backward(torch.ones_like(x))


if __name__ == "__main__":
    main()
