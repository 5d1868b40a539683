"""`ema-ops bench`: the microbenchmark, which lives beside the package in the repository."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..checkout import benchmarks_parent
from .extras import require

HELP = "measure time and memory of EM attention against its rivals (run it from the repository)"


def configure(parser: argparse.ArgumentParser) -> None:
    """Options without a value here take a default that depends on the device and on --quick."""
    add = parser.add_argument
    add("--device", help="cpu, cuda or cuda:0 (default: cuda if there is one)")
    add("--dtype", nargs="+", help="float32 bfloat16 float16 float8_e4m3fn (default: bfloat16 on cuda, float32 on cpu)")
    add("--batch", type=int, nargs="+", help="batch sizes B (default: 1 16 on cuda, 1 on cpu)")
    add("--channels", type=int, help="channels C (default: 512)")
    add("--bases", type=int, help="number of bases K (default: 64)")
    add("--sizes", type=image_size, nargs="+", metavar="HxW", help="default: 33x33 65x65 97x97 129x129")
    add("--shapes", metavar="NAME", help="constant-work: N from 4k to 1M at the same B * N, instead of batch and sizes")
    add("--iters", type=int, help="iterations T (default: 3)")
    add(
        "--mode",
        nargs="+",
        help="forward backward full unit (default: forward full); unit is the EMA unit in evaluation",
    )
    add("--memory-order", nargs="+", help="contiguous channels_last (default: contiguous)")
    add("--peers", nargs="*", help="which rivals (default: all; none after --peers: only our backends)")
    add("--backends", nargs="*", help="which of our backends (default: all)")
    add("--seconds", type=float, help="time for the repeats of one measurement (default: 0.5)")
    add("--time-limit", type=float, help="start no measurement after so many seconds; the rest is marked 'not run'")
    add("--seed", type=int, help="of the random inputs (default: 0)")
    add("--out", type=Path, help="folder for CSV, table and plots (default: runs/bench)")
    add("--quick", action="store_true", help="small shapes, short repeats, no torch.compile: a look in seconds")


def run(args: argparse.Namespace) -> int:
    """Measure and print; 1 if a result was wrong or a peer failed. Raises ValueError for bad options."""
    find_benchmarks()
    from benchmarks.microbenchmark import run as run_microbenchmark
    from benchmarks.options import options

    given = {name: value for name, value in vars(args).items() if name not in ("command", "run")}
    tuples = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    return run_microbenchmark(options(**{**given, **tuples}))


def find_benchmarks() -> None:
    """Make `benchmarks` importable: from beside the package (a checkout) or from the current directory.

    Raises ValueError when it is in neither place, or when what it needs is not installed.
    """
    folder = benchmarks_parent()
    if folder is None:
        raise ValueError(
            f"there is no benchmarks/microbenchmark.py in {Path.cwd()}: expected to run from the repository of ema_ops"
        )
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    require("bench")


def image_size(text: str) -> tuple[int, int]:
    """(height, width) of "65x97"."""
    height, separator, width = text.partition("x")
    if not (separator and height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"size is {text!r}: expected HEIGHTxWIDTH such as 65x65")
    return int(height), int(width)
