"""`ema-ops demo`: the main job on real pixels, or what each basis attends to on a picture of yours."""

from __future__ import annotations

import argparse
from pathlib import Path

from .extras import require

HELP = "train four small networks on real pixels and write a report, or show the bases over your own picture"
PICTURE_NEEDS = ("PIL", "matplotlib", "jinja2", "tqdm")
MAX_SEED = 2**31 - 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Without options: the whole demo into runs/demo, about seven minutes on two cores."""
    add = parser.add_argument
    add("--quick", action="store_true", help="every part in about a minute, too short to learn the task")
    add("--out", type=Path, default=Path("runs/demo"), help="folder for everything written (default: runs/demo)")
    add("--seed", type=int, default=0, help="of data, first weights and order (default: 0)")
    add("--steps", type=int, help="training steps of each network")
    add("--image", type=Path, help="only show what each basis attends to on this picture")
    add("--weights", type=Path, help="with --image: a network.pt of the demo (default: the one in --out or runs/demo)")


def run(args: argparse.Namespace) -> int:
    """0, or 1 when the microbenchmark found a wrong result; bad input raises ValueError or OSError naming it."""
    if args.image is not None:
        require("demo", only=PICTURE_NEEDS)
        from ..demo.picture import run_image

        for path in run_image(args.image, args.out, args.weights):
            print(path)
        return 0
    require("demo")
    if not 0 <= args.seed <= MAX_SEED:
        raise ValueError(f"seed is {args.seed}: expected 0 to {MAX_SEED}")
    from ..demo import report
    from ..demo.run import plan_for, run_demo

    table, status = run_demo(plan_for(quick=args.quick, out=args.out, seed=args.seed, steps=args.steps))
    print(report.text_table(table))
    print(f"report: {args.out / 'report.html'}")
    return status
