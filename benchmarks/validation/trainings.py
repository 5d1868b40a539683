"""The trainings of the report: each in a folder of its own, and kept once done."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ema_ops.segmentation.config import load_config
from ema_ops.segmentation.data import open_dataset
from ema_ops.segmentation.data.generated.drawing import build
from ema_ops.segmentation.evaluation import evaluate
from ema_ops.segmentation.models import load_network
from ema_ops.segmentation.training import train
from ema_ops.segmentation.training.files import replacing

from .jobs import in_processes
from .variants import NUM_ITERS, Variant

RECIPE = "generated"
OUTCOME, BUDGET = "outcome.json", "budget.json"
DATA_SEED = 0


@dataclass(frozen=True)
class Budget:
    """Pictures of the generated set, and training steps."""

    train: int = 2000
    val: int = 200
    steps: int = 1000
    judgements: int = 5


@dataclass(frozen=True)
class Outcome:
    """What became of one training: mIoU of the last network, on the way, and with other T at evaluation."""

    variant: Variant
    mean_iou: float
    curve: list[tuple[int, float]]
    by_iters: dict[int, float]


def train_all(
    variants: Sequence[Variant],
    folder: Path,
    budget: Budget,
    *,
    device: str,
    jobs: int,
    progress: Callable[[Outcome], object] = lambda _: None,
) -> list[Outcome]:
    """Train every variant, `jobs` at a time, under `folder`; what is there already is read. In the order of `variants`.

    `progress` is called with each outcome as it comes. Raises KeyboardInterrupt when a signal stopped a training, which
    goes on when called again.
    """
    data = folder / "data"
    if not (data / BUDGET).is_file():
        build(data, train=budget.train, val=budget.val, seed=DATA_SEED)
        _write_json(data / BUDGET, asdict(budget))
    elif (found := json.loads((data / BUDGET).read_text())) != asdict(budget):
        raise ValueError(f"{data} was made for the budget {found}: expected {asdict(budget)}; choose another folder")
    threads = max(1, torch.get_num_threads() // jobs)
    one = partial(_train_one, folder=folder, budget=budget, device=device, threads=threads)
    found = {}
    for outcome in map(one, variants) if jobs == 1 else in_processes(one, variants, jobs):
        found[outcome.variant] = outcome
        progress(outcome)
    return [found[variant] for variant in variants]


def _train_one(variant: Variant, *, folder: Path, budget: Budget, device: str, threads: int) -> Outcome:
    out = folder / variant.folder
    if (out / OUTCOME).is_file():
        return _read(variant, out)
    config = load_config(
        RECIPE,
        [
            *variant.sets,
            f"out={json.dumps(str(out))}",
            f"data.root={json.dumps(str(folder / 'data'))}",
            f"training.steps={budget.steps}",
            f"training.validate_every={max(1, budget.steps // budget.judgements)}",
            f"training.device={device}",
            f"training.threads={threads}",
            "training.pictures=0",
        ],
    )
    if train(config, resume=(out / "latest.pt").is_file()).signal is not None:
        raise KeyboardInterrupt
    network, _ = load_network(out / "latest.pt", backend=variant.backend)
    validation = open_dataset(config.data.kind, config.data.root, config.data.val_split, **config.data.options)
    by_iters = {}
    attention = network.get_submodule("unit.attention")
    for iters in NUM_ITERS:
        attention.num_iters = iters  # type: ignore[assignment]
        by_iters[iters] = evaluate(network, validation, batch=16, device=device).mean_iou
    with open(out / "validation.csv", newline="") as file:
        curve = [(int(row["step"]), float(row["mean_iou"])) for row in csv.DictReader(file)]
    outcome = Outcome(variant, by_iters[variant.num_iters], curve, by_iters)
    _write_json(out / OUTCOME, asdict(outcome))
    return outcome


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all: who finds the file takes what it says for done."""
    with replacing(path) as part:
        part.write_text(json.dumps(content))


def _read(variant: Variant, out: Path) -> Outcome:
    kept = json.loads((out / OUTCOME).read_text())
    by_iters = {int(iters): value for iters, value in kept["by_iters"].items()}
    return Outcome(variant, kept["mean_iou"], [(step, value) for step, value in kept["curve"]], by_iters)
