"""The whole validation: its parts, their results as files, and the report made of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ema_ops.backends import MODULES, load
from ema_ops.demo.page import Figure, write
from ema_ops.segmentation.training.distributed import find_device

from .. import environment
from . import checkpoints, cost, plots
from .trainings import Budget, Outcome, train_all
from .variants import ABLATIONS, NUM_ITERS, Variant, all_variants

QUICK_BUDGET = Budget(train=16, val=4, steps=2)
QUICK_SETTING = cost.Setting(backbone="small", batch=1, edge=65, repeats=1)


@dataclass(frozen=True)
class Plan:
    """Where to write, which parts, the device (None chooses), the seeds, how many trainings at the same time.

    The ablations take the first `ablation_seeds` of the seeds, all with None.
    """

    out: Path
    parts: tuple[str, ...]
    device: str | None
    seeds: tuple[int, ...]
    ablation_seeds: int | None = None
    jobs: int = 1
    quick: bool = False

    @property
    def asked(self) -> tuple[int, ...]:
        """The seeds of the ablations."""
        return self.seeds[: self.ablation_seeds]


@dataclass(frozen=True)
class Line:
    """One line of a table of trainings: the mIoU of every seed."""

    name: str
    values: list[float]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """Highest minus lowest."""
        return max(self.values) - min(self.values)


def validate(plan: Plan) -> int:
    """Run what is asked for, write `report.html`; 1 when a comparison failed.

    Trainings that already lie in the folder are not repeated.

    Raises:
        ValueError: the device, a seed or the number of jobs does not fit.
    """
    device = find_device(plan.device)
    if plan.ablation_seeds is not None and not 1 <= plan.ablation_seeds <= len(plan.seeds):
        raise ValueError(
            f"ablation_seeds is {plan.ablation_seeds}: expected 1 to the number of seeds, {len(plan.seeds)}"
        )
    if plan.jobs < 1 or min(plan.seeds) < 0 or len(set(plan.seeds)) < len(plan.seeds):
        raise ValueError(
            f"jobs is {plan.jobs}, seeds are {plan.seeds}: expected at least one job, seeds from 0 up, no two the same"
        )
    plan.out.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"checks": None, "trainings": None, "costs": None}
    if "checkpoints" in plan.parts:
        content["checks"] = checkpoints.checks()
    if "trainings" in plan.parts:
        content["trainings"] = _trainings(plan, device)
    if "cost" in plan.parts:
        content |= _costs(plan, device)
    where = environment.environment(device) | {"utc": environment.now()}
    write(
        plan.out / "report.html",
        "report.jinja",
        Path(__file__).parent,
        environment=where,
        quick=plan.quick,
        **content,
    )
    print(f"report: {plan.out / 'report.html'}")
    return 0 if all(check.passed for check in content["checks"] or []) else 1


def _costs(plan: Plan, device: torch.device) -> dict[str, Any]:
    setting = QUICK_SETTING if plan.quick else cost.Setting()
    with tqdm(desc="cost", unit="run") as bar:

        def tell(text: str) -> None:
            bar.set_description(text)
            bar.update()

        rows = cost.costs(setting, device, tell)
    caption = (
        "Median time, and the highest sum of allocations during a step beyond what lies there between steps: network, "
        "batch, gradients, and the state of the optimizer."
    )
    return {"costs": rows, "setting": setting, "cost_figure": Figure(plots.cost(rows), caption)}


def _trainings(plan: Plan, device: torch.device) -> dict[str, Any]:
    budget = QUICK_BUDGET if plan.quick else Budget()
    usable = [name for name in MODULES if _can_train(name, device)]
    variants = all_variants(usable, plan.seeds, plan.asked)
    with tqdm(total=len(variants), desc="trainings", unit="training") as bar:
        outcomes = train_all(
            variants,
            plan.out / "trainings",
            budget,
            device=str(device),
            jobs=plan.jobs,
            progress=lambda outcome: bar.update(),
        )
    by_variant = {outcome.variant: outcome for outcome in outcomes}

    def line(name: str, seeds: Sequence[int], backend: str, **changes: Any) -> Line:
        return Line(name, [by_variant[Variant(backend, seed, **changes)].mean_iou for seed in seeds])

    first = usable[0]
    tables = {
        question: [line(answer, plan.asked, first, **changes) for answer, changes in answers.items()]
        for question, answers in ABLATIONS.items()
    }
    return {
        "budget": budget,
        "backends": usable,
        "missing": [name for name in MODULES if name not in usable],
        "seeds": plan.seeds,
        "asked": plan.asked,
        "by_backend": [line(name, plan.seeds, name) for name in usable],
        "tables": tables,
        "curves": _curves(usable, plan.seeds, by_variant),
        "ablations": _ablations(tables),
        "matrix": _matrix(first, plan.asked, by_variant),
    }


def _can_train(backend: str, device: torch.device) -> bool:
    """Triton's interpreter and the CPU do not count: only "torch" trains there in reasonable time."""
    return backend == "torch" or (device.type == "cuda" and load(backend).unavailable() is None)


def _curves(backends: Sequence[str], seeds: Sequence[int], outcomes: Mapping[Variant, Outcome]) -> Figure:
    shown = [outcomes[Variant(backend, seed)] for backend in backends for seed in seeds]
    return Figure(plots.curves(shown), "The default network with every seed: mIoU on the validation pictures.")


def _ablations(tables: Mapping[str, Sequence[Line]]) -> Figure:
    answers = {question: {line.name: line.values for line in lines} for question, lines in tables.items()}
    caption = "One dot a seed, lines through the means. What is not asked about is as in the default network."
    return Figure(plots.ablations(answers), caption)


def _matrix(backend: str, seeds: Sequence[int], outcomes: Mapping[Variant, Outcome]) -> Figure:
    def mean(trained: int, evaluated: int) -> float:
        return statistics.fmean(
            outcomes[Variant(backend, seed, num_iters=trained)].by_iters[evaluated] for seed in seeds
        )

    matrix = [[mean(trained, evaluated) for evaluated in NUM_ITERS] for trained in NUM_ITERS]
    return Figure(plots.trained_and_evaluated_iters(matrix), "Mean mIoU over the seeds; a row is one trained network.")
