"""The whole demo: a set from real pixels, four networks, time and memory, the report."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from .. import __version__
from ..checkout import benchmarks_parent
from ..segmentation.data import VOCSegmentation
from ..segmentation.data.generated.drawing import CLASSES, DISTANCE, build
from ..segmentation.data.generated.sources import PHOTOGRAPHS, photograph
from . import attend, charts, report
from .measure import costs
from .network import CONTEXTS, NUM_BASES, STRIDE, DemoNetwork, receptive_field
from .page import Figure, write
from .picture import DEFAULT_OUT, MAP_CAPTION, NETWORK_FILE
from .train import Budget, Result, train

OURS = "EM attention"
FULL = Budget()
QUICK = Budget(train=160, val=32, steps=24, batch=8, judgements=3)


@dataclass(frozen=True)
class Plan:
    """Where to write, the budget, the seed, repeats of the time measurement, options of the microbenchmark."""

    out: Path = DEFAULT_OUT
    budget: Budget = FULL
    seed: int = 0
    repeats: int = 20
    bench: tuple[str, ...] = ("--quick",)
    quick: bool = False


@dataclass(frozen=True)
class Microbenchmark:
    """Plots of the operator alone, what is to be said about them, and the exit status of `ema-ops bench`."""

    figures: list[Figure]
    note: str
    status: int


def run_demo(plan: Plan) -> tuple[list[report.Line], int]:
    """Build the set, train the four networks, measure, write `report.html`.

    Returns the result table and the exit status of the microbenchmark, not 0 when a result in it was wrong.

    Raises RuntimeError when the network could see the cue without its context layer, and OSError when a file
    cannot be written.
    """
    started = time.perf_counter()
    plan.out.mkdir(parents=True, exist_ok=True)
    data = plan.out / "data" / f"{plan.budget.train}-{plan.budget.val}-{plan.seed}"
    field = _check_distance()
    with tqdm(total=plan.budget.train + plan.budget.val, desc="data", unit="picture") as bar:
        build(data, train=plan.budget.train, val=plan.budget.val, seed=plan.seed, progress=bar.update)
    train_set = VOCSegmentation(data, "train", num_classes=len(CLASSES))
    val_set = VOCSegmentation(data, "val", num_classes=len(CLASSES))

    results = _train_all(plan, train_set, val_set)
    attend.save_network(results[list(CONTEXTS).index(OURS)].network, plan.out / NETWORK_FILE)
    images, labels = next(iter(DataLoader(train_set, batch_size=plan.budget.batch)))
    with tqdm(total=plan.repeats * len(CONTEXTS), desc="time and memory", unit="step") as bar:
        cost = costs(images, labels, plan.repeats, bar.update)
    bench = _microbenchmark(plan)

    table = report.lines(results, cost)
    write(
        plan.out / "report.html",
        "report.jinja",
        table=table,
        settings=_settings(plan, time.perf_counter() - started),
        quick=plan.quick,
        val_count=len(val_set),
        class_count=len(CLASSES),
        repeats=plan.repeats,
        batch=plan.budget.batch,
        distance=DISTANCE,
        field=field,
        positions=images.shape[2] // STRIDE * (images.shape[3] // STRIDE),
        predictions=_predictions(results, val_set),
        curves=Figure(
            charts.learning_curves(results),
            "Left: training loss, running mean of 20 steps. Right: mIoU on the validation pictures.",
        ),
        maps=_maps(results),
        bench=bench,
        environment=_environment(),
        photographs=", ".join(name.partition(".")[0] for names in PHOTOGRAPHS.values() for name in names),
    )
    return table, bench.status


def _check_distance() -> int:
    """The receptive field of the network without context; RuntimeError when it reaches a cue from a marked digit."""
    field = receptive_field(DemoNetwork("no context", len(CLASSES)))
    if field >= DISTANCE:
        raise RuntimeError(f"the network sees {field} pixels: expected fewer than the {DISTANCE} to the cue")
    return field


def _train_all(plan: Plan, train_set: VOCSegmentation, val_set: VOCSegmentation) -> list[Result]:
    with tqdm(total=plan.budget.steps * len(CONTEXTS), desc="training", unit="step") as bar:

        def tell(text: str) -> None:
            bar.set_description(text, refresh=False)
            bar.update()

        return [train(name, train_set, val_set, plan.budget, plan.seed, tell) for name in CONTEXTS]


def _microbenchmark(plan: Plan) -> Microbenchmark:
    """A short `ema-ops bench`; without the repository no plots, and the reason."""
    if benchmarks_parent() is None:
        return Microbenchmark([], "Not run: `ema-ops bench` works in a clone of the repository only.", 0)
    folder = plan.out / "bench"
    command = ["bench", "--device", "cpu", "--out", str(folder), "--seed", str(plan.seed), *plan.bench]
    status = subprocess.run([sys.executable, "-m", "ema_ops", *command]).returncode
    note = (
        "A short microbenchmark on this machine's CPU at small sizes, both axes logarithmic. Every result was checked "
        f"against the float64 reference before it was timed. Run {' '.join(['ema-ops bench', *plan.bench])} to "
        "repeat it, or without --quick for the sizes of the paper."
    )
    if status == 1:
        note += " It ended with status 1: a result was wrong or a peer failed; measurements.csv says which."
    elif status:
        note += f" It ended with status {status}; its last line said why."
    figures = [
        Figure(path.read_bytes(), "Time and peak extra memory against the number of positions N.")
        for path in sorted(folder.rglob("*.png"))
    ]
    return Microbenchmark(figures, note, status)


def _predictions(results: Sequence[Result], val_set: VOCSegmentation) -> Figure:
    indices = range(min(5, len(val_set)))
    return Figure(
        charts.predictions(results, val_set, indices),
        f"The first {len(indices)} validation pictures, not chosen. Red is the cue; green, yellow and blue are the "
        "digits marked zero, one and two. Without context a network can find the digits but must guess their class.",
    )


def _maps(results: Sequence[Result]) -> list[Figure]:
    """Basis maps of the trained EM network over a validation photograph without any digit on it, and colour maps."""
    network = next(result.network for result in results if result.name == OURS)
    picture = photograph("chelsea.png")
    learnt = charts.basis_maps(picture, attend.maps_of_network(network, picture))
    simple = charts.basis_maps(picture, attend.maps_of_colours(picture))
    about = f"A photograph from validation, K = {NUM_BASES}. "
    return [
        Figure(learnt, f"{about}Features of the trained network, which has learnt to find digits. {MAP_CAPTION}"),
        Figure(simple, f"{about}The same operator on plain colour and position, nothing trained. {MAP_CAPTION}"),
    ]


def _settings(plan: Plan, seconds: float) -> str:
    budget = plan.budget
    return (
        f"Seed {plan.seed}; {budget.train} training pictures, {budget.steps} steps of {budget.batch} each; "
        f"the whole run took {seconds / 60:.1f} minutes."
    )


def _environment() -> str:
    return (
        f"ema_ops {__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads, all on the CPU."
    )


def plan_for(*, quick: bool, out: Path, seed: int, steps: int | None) -> Plan:
    """The plan of the command line; `steps` overrides the number of training steps."""
    plan = Plan(out=out, seed=seed, quick=quick)
    if quick:
        plan = replace(plan, budget=QUICK, repeats=5, bench=("--quick", "--seconds", "0.02", "--time-limit", "25"))
    if steps is not None:
        if steps < 1:
            raise ValueError(f"steps is {steps}: expected at least 1")
        budget = asdict(plan.budget) | {"steps": steps, "judgements": min(plan.budget.judgements, steps)}
        plan = replace(plan, budget=Budget(**budget))
    return plan
