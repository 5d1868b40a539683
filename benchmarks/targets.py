"""The targets of the CUDA core on an H200, and what was measured: a table for `gpu_check.sh`.

Times are those of `measurements.csv` (replays of a CUDA graph) and `latency.csv`, ratios of memory those that the GPU
tests record.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from .peers import RIVALS
from .ratios import describe, order_ratios, peer_ratios, position_ratios
from .records import outcomes, properties
from .results import CASE, Row, latest, number, read

CORE = "ema_ops/cuda"
# the case that the targets are about, unless they name another
MAIN = {"dtype": "bfloat16", "channels": "512", "num_bases": "64", "num_iters": "3"}
LARGE = {"batch": "16", "height": "65", "width": "65", "memory_order": "channels_last"}


@dataclass(frozen=True)
class Target:
    """At most `must`, better at most `goal`. `measured` is None if it was not; `note` says where it was worst."""

    name: str
    must: float
    goal: float | None
    measured: float | None
    note: str = ""

    @property
    def met(self) -> str:
        """What was reached: "goal", "must", "no" or "not measured"."""
        if self.measured is None:
            return "not measured"
        if self.goal is not None and self.measured <= self.goal:
            return "goal"
        return "must" if self.measured <= self.must else "no"


def targets(rows: Iterable[Row], recorded_numbers: dict[str, list[float]]) -> list[Target]:
    """All targets; `recorded_numbers` are those that the tests recorded, by name."""
    rows = [row for row in latest(rows) if all(row[column] == value for column, value in MAIN.items())]
    core = [row for row in rows if row["peer"] == CORE]

    def over_floor(mode: str) -> tuple[float | None, str]:
        return _worst((row, _time_over_floor(row)) for row in _like(core, **LARGE, mode=mode))

    small = _like(core, **{**LARGE, "batch": "1"}, mode="forward")
    odd = [(row, ratio) for row, ratio in order_ratios(core) if int(row["positions"]) % 2]
    sweep = list(position_ratios(core))
    spread = [(row, max(ratio, 1 / ratio)) for row, ratio in sweep]

    def recorded(name: str) -> float | None:
        return max(recorded_numbers.get(name, []), default=None)

    return [
        Target("forward (16, 65 x 65) over floor", 3, 2.5, *over_floor("forward")),
        Target("backward (16, 65 x 65) over floor", 2.5, 2, *over_floor("backward")),
        Target("contiguous, N odd, over channels-last", 1.3, 1.1, *_worst(odd)),
        Target("forward B = 1, 65 x 65, us", 45, 30, *_worst((row, _microseconds(row)) for row in small)),
        Target("time over that of the Triton backend", 1.05, 1, *_worst(peer_ratios(rows, CORE, "ema_ops/triton"))),
        Target("kept for backward over what is promised", 1, None, recorded("kept_over_promised")),
        Target("peak extra memory of forward over Y", 1.6, None, recorded("forward_memory_over_y")),
        Target("peak extra memory of backward over X", 2.2, None, recorded("backward_memory_over_x")),
        Target("time per position, N = 4k to 1M, apart", 1.2, 1.1, *_worst(spread)),
    ]


def hopper_targets(rows: Iterable[Row], latencies: Iterable[tuple[float, str]] = ()) -> list[Target]:
    """Those of the kernels for Hopper and of the folded unit, with the best that any way of them measured.

    `latencies`: what a call costs over its replay, in microseconds, and whose call.
    """
    rows = [row for row in latest(rows) if row["status"] == "ok" and row["graph_p50_ms"]]
    ours = [row for row in rows if row["peer"].startswith((f"{CORE}:", f"{CORE} "))]

    def best(mode: str, batch: str, value: Callable[[Row], float | None]) -> tuple[float | None, str]:
        alike = _like(ours, **{**MAIN, **LARGE, "batch": batch, "mode": mode})
        measured = [(found, row["peer"]) for row in alike if (found := value(row)) is not None]
        return min(measured, default=(None, ""))

    def over_official(row: Row) -> float | None:
        times = [_microseconds(other) for other in rows if other["peer"] == "official-compiled" and _same(other, row)]
        mine = _microseconds(row)
        return mine / times[0] if mine and times and times[0] else None

    return [
        Target("Hopper: forward (16, 65 x 65), us", 86, 55, *best("forward", "16", _microseconds)),
        Target("Hopper: forward (8, 65 x 65), us", 60, 40, *best("forward", "8", _microseconds)),
        Target("Hopper: forward B = 1, 65 x 65, us", 40, 20, *best("forward", "1", _microseconds)),
        Target("Hopper: backward (16, 65 x 65), us", 190, 145, *best("backward", "16", _microseconds)),
        Target("Hopper: unit in evaluation (16, 65 x 65), us", 170, 125, *best("unit", "16", _microseconds)),
        Target("Hopper: unit over the official one compiled", 1 / 3, None, *best("unit", "16", over_official)),
        Target("Hopper: call over replay, forward B = 1, us", 25, 12, *min(latencies, default=(None, ""))),
    ]


def rivals(rows: Iterable[Row]) -> dict[str, dict[str, float]]:
    """By case, the times of the rivals over that of the core."""
    rows = _like(rows, **MAIN)
    found: dict[str, dict[str, float]] = {}
    for name in RIVALS:
        for row, ratio in peer_ratios(rows, CORE, name):
            found.setdefault(describe(row), {})[name] = 1 / ratio
    return found


def write(folder: Path) -> str:
    """Write `targets.md` from all CSV files and records of tests below `folder`; returns the text."""
    rows = [row for path in sorted(folder.rglob("measurements.csv")) for row in read(path)]
    devices = ", ".join(sorted({row["device"] for row in rows})) or "no measurement"
    # kernels for Hopper may copy features whose rows are not aligned, which no target is about
    tests = [test for name, each in outcomes(folder).items() if not name.startswith("hopper") for test in each]
    found = targets(rows, properties(tests)) + hopper_targets(rows, read_latencies(folder))
    lines = [
        f"Measured on: {devices}",
        "",
        "| target | must | goal | measured | met | worst |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {t.name} | {number(t.must)} | {_text(t.goal)} | {_text(t.measured)} | {t.met} | {t.note} |" for t in found
    ]
    lines += ["", "Time of others over that of the core:", "", f"| case | {' | '.join(RIVALS)} |"]
    lines.append("|---" * (1 + len(RIVALS)) + "|")
    lines += [
        f"| {case} | {' | '.join(_text(times.get(name)) for name in RIVALS)} |" for case, times in rivals(rows).items()
    ]
    text = "\n".join(lines) + "\n"
    (folder / "targets.md").write_text(text)
    return text


def read_latencies(folder: Path) -> list[tuple[float, str]]:
    """What a call of the core costs over its replay, B = 1 at 65 x 65, from every `latency.csv` below `folder`."""
    found = []
    for path in sorted(folder.rglob("latency.csv")):
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["peer"].startswith(CORE) and row["height"] == "65"]
        found += [(float(row["overhead_us"]), row["peer"]) for row in rows]
    return found


def _like(rows: Iterable[Row], **wanted: str) -> list[Row]:
    return [row for row in rows if all(row[column] == value for column, value in wanted.items())]


def _same(first: Row, second: Row) -> bool:
    return all(first[column] == second[column] for column in CASE)


def _worst(ratios: Iterable[tuple[Row, float | None]]) -> tuple[float | None, str]:
    """The largest number and where it was measured."""
    measured = [(value, describe(row)) for row, value in ratios if value is not None]
    return max(measured, default=(None, ""))


def _microseconds(row: Row) -> float | None:
    """Of the graph's replay; a call from Python is no answer to the target."""
    return 1e3 * float(row["graph_p50_ms"]) if row["status"] == "ok" and row["graph_p50_ms"] else None


def _time_over_floor(row: Row) -> float | None:
    return float(row["graph_over_floor"]) if row["status"] == "ok" and row["graph_over_floor"] else None


def _text(value: float | None) -> str:
    return "-" if value is None else number(value)
