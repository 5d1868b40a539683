"""The short text of `gpu_check.sh`: where it ran, what passed, what was measured, targets, and where we lose."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from .environment import environment, now
from .hopper.decision import write as write_decision
from .plots import plot
from .records import FAILED, Outcome, outcomes, read_parts
from .results import RATIOS, Row, latest, read
from .targets import write as write_targets

FOR_PEOPLE = ("report.txt", "targets.md", "decision.md")
COUNTERS = "ncu.md"


def main(argv: list[str]) -> int:
    """`gpu_report FOLDER [OUT]`: write the tables into FOLDER from all that lies below it, and copy those for people
    to OUT. 1 if a part or a test failed, else 0."""
    folder = Path(argv[0])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    everything = [row for path in sorted(folder.rglob("measurements.csv")) for row in read(path)]
    rows, parts, tests = latest(everything), read_parts(folder), outcomes(folder)
    lines = [f"GPU check of {now()}", *(f"{name}: {value}" for name, value in environment(device).items())]
    if device.type == "cpu":
        lines.append("PyTorch sees no GPU here: what follows was measured where its rows say")
    lines += [str(part) for part in parts]
    for name, of_file in tests.items():
        lines += [f"{name}: {_counts(of_file)}", *(f"  {o.outcome}: {o.test}" for o in of_file if o.outcome in FAILED)]
    lines.append("rows: " + _status_counts(rows))
    lines += ["", write_targets(folder), write_decision(everything, tests, folder / "decision.md"), *_lost(rows)]
    lines += [f"plot: {path.name}" for path in plot(everything, folder)]
    text = "\n".join(lines)
    (folder / "report.txt").write_text(text + "\n")
    print(text)
    if len(argv) > 1:
        for path in [*(folder / name for name in FOR_PEOPLE), *folder.rglob(COUNTERS)]:
            shutil.copy(path, Path(argv[1]) / path.name)
    failed = [o for of_file in tests.values() for o in of_file if o.outcome in FAILED]
    return 1 if failed or any(part.status != "0" for part in parts) else 0


def _counts(tests: Sequence[Outcome]) -> str:
    counted = Counter(test.outcome for test in tests)
    return ", ".join(f"{counted[name]} {name}" for name in ("passed", "failed", "never ended", "skipped"))


def _status_counts(rows: list[Row]) -> str:
    counted = Counter(row["status"] for row in rows)
    return ", ".join(f"{count} {status}" for status, count in counted.items()) or "none"


def _lost(rows: list[Row]) -> list[str]:
    """A line for every measured row of ours that a rival beats in time."""
    lines = []
    for row in rows:
        if not (row["peer"].startswith("ema_ops/") and row["status"] == "ok"):
            continue
        faster = [f"{name} {row[column]}x" for name, column in RATIOS.items() if row[column] and float(row[column]) < 1]
        if faster:
            case = f"{row['dtype']} {row['memory_order']} B={row['batch']} N={row['positions']} {row['mode']}"
            lines.append(f"slower: {row['peer']} {case}: {', '.join(faster)} (times as fast)")
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
