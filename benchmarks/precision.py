"""What the dtype of the features costs in accuracy.

    python -m benchmarks.precision FOLDER                                  float32 to float8_e4m3fn on a CPU
    python -m benchmarks.precision FOLDER --device cuda --backend cuda     with the kernels of a backend

write FOLDER/precision.md: the error of y over its length, against float64 on the features before they were rounded,
and the mIoU of the demo's network, trained here in float32, with its features rounded in front of EM attention.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from ema_ops import em_attention, reference
from ema_ops.problem import FLOAT8

from .environment import commit, device_name, now

if TYPE_CHECKING:
    from ema_ops import EMAUnit

DTYPES = (torch.float32, torch.bfloat16, torch.float16, FLOAT8)
POSITIONS, CHANNELS, NUM_BASES, CLUSTERS = 1089, 512, 64, 20
OUTLIER = 20.0  # times as large as the other channels
NETWORK, STEPS = "EM attention", 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the tables")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--backend", help="of ema_ops (default: the first that serves the call)")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the network's training; 0: no network")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "precision.md").open("w") as file:
        for line in report(options.device, options.backend, options.steps):
            print(line, flush=True)
            print(line, file=file, flush=True)


def report(device: torch.device, backend: str | None, steps: int) -> Iterator[str]:
    """The lines of both tables, measured as they are asked for."""
    yield f"{device_name(device)}, backend {backend or 'chosen'}, torch {torch.__version__}."
    yield f"{now()}, commit {commit()}."
    yield f"N = {POSITIONS}, C = {CHANNELS}, K = {NUM_BASES}, T = 3. Error of y over its length; in brackets what"
    yield "rounding the features alone would cost."
    yield ""
    yield from _table("features", ([name, *errors(x, device, backend)] for name, x in kinds().items()))
    if steps:
        yield ""
        yield f"mIoU of the network of `ema-ops demo` after {steps} steps in float32:"
        yield ""
        yield from _table("", [["mIoU", *network_scores(steps, device, backend)]])


def _table(title: str, rows: Iterable[list[str]]) -> Iterator[str]:
    yield f"| {title} | " + " | ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES) + " |"
    yield "|---" * (1 + len(DTYPES)) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def kinds() -> dict[str, Tensor]:
    """Features [1, N, C] in float64 by what they are like."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    normal = draw(1, POSITIONS, CHANNELS)
    loud = normal.clone()
    loud[..., 0] *= OUTLIER
    centres = draw(CLUSTERS, CHANNELS)[torch.randint(CLUSTERS, (POSITIONS,), generator=generator)]
    return {
        "normal": normal,
        "after a ReLU": normal.relu(),
        f"{CLUSTERS} clusters, noise of half their distance": centres + 0.5 * draw(1, POSITIONS, CHANNELS),
        f"normal, one channel {OUTLIER:g} times larger": loud,
    }


def errors(x: Tensor, device: torch.device, backend: str | None) -> Iterator[str]:
    """For every dtype the error of y as it is, and where only the features are rounded."""
    generator = torch.Generator().manual_seed(1)
    bases = nn.functional.normalize(torch.randn(CHANNELS, NUM_BASES, generator=generator, dtype=torch.float64), dim=0)
    exact, _ = reference.em_attention(x, bases)
    for dtype in DTYPES:
        rounded = x.to(dtype)
        y, _ = em_attention(rounded.to(device), bases.float().to(device), backend=backend)
        alone, _ = reference.em_attention(rounded.double(), bases)
        ours, theirs = (float((found - exact).norm() / exact.norm()) for found in (y.double().cpu(), alone))
        yield f"{ours:.2g} ({theirs:.2g})"


def network_scores(steps: int, device: torch.device, backend: str | None) -> Iterator[str]:
    """mIoU of one trained network with features of every dtype in front of its EM attention."""
    # only this needs ema_ops[demo]
    from ema_ops.demo.train import Budget, evaluate, train
    from ema_ops.segmentation.data import VOCSegmentation
    from ema_ops.segmentation.data.generated.drawing import CLASSES, build

    budget = Budget(steps=steps, judgements=1)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        build(data, train=budget.train, val=budget.val, seed=0)
        train_set, val_set = (VOCSegmentation(data, name, num_classes=len(CLASSES)) for name in ("train", "val"))
        network = train(NETWORK, train_set, val_set, budget, seed=0).network
        attention = cast("EMAUnit", network.context).attention.to(device)
        attention.backend = backend
        for dtype in DTYPES:
            before = attention.register_forward_pre_hook(partial(_rounded, device, dtype))
            after = attention.register_forward_hook(_given_back)
            scores = evaluate(network, val_set)
            before.remove()
            after.remove()
            yield f"{sum(scores) / len(scores):.4f}"


def _rounded(device: torch.device, dtype: torch.dtype, _: nn.Module, given: tuple) -> tuple:
    return given[0].to(device, dtype), *given[1:]


def _given_back(_: nn.Module, given: tuple, found: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    y, bases = found
    return y.to("cpu", torch.float32), bases


if __name__ == "__main__":
    main()
