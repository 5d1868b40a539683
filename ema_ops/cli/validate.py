"""`ema-ops validate`: the accuracy validation, which lives beside the package in the repository."""

from __future__ import annotations

import argparse
from pathlib import Path

from .bench import find_benchmarks
from .extras import require

HELP = "validate the accuracy of the segmentation network and write a report (run it from the repository)"
PARTS = ("checkpoints", "trainings", "cost")


def configure(parser: argparse.ArgumentParser) -> None:
    """Without options: everything, on the GPU if there is one."""
    add = parser.add_argument
    add(
        "--out", type=Path, default=Path("runs/validation"), help="folder for everything written; what is in it is kept"
    )
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    add("--device", help="cpu, cuda or cuda:0 (default: cuda if there is one)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the trainings (default: 0 1 2)")
    add("--ablation-seeds", type=int, metavar="COUNT", help="how many of the seeds the ablations take (default: all)")
    add("--jobs", type=int, default=1, help="trainings at the same time, each with its share of the threads")
    add("--quick", action="store_true", help="few steps and small pictures: shows that every part works")


def run(args: argparse.Namespace) -> int:
    """0, or 1 when a comparison with another implementation failed. Raises ValueError for bad options."""
    find_benchmarks()
    require("demo")
    from benchmarks.validation.run import Plan, validate

    return validate(
        Plan(
            args.out,
            tuple(args.parts),
            args.device,
            tuple(args.seeds),
            ablation_seeds=args.ablation_seeds,
            jobs=args.jobs,
            quick=args.quick,
        )
    )
