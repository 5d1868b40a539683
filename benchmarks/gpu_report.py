"""The short text of `gpu_check.sh`: where it ran, what passed, what was measured, targets, and where we lose."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import torch

from .environment import environment, now
from .results import RATIOS, Row, latest, read
from .targets import write as write_targets


def main(argv: list[str]) -> int:
    """`gpu_report FOLDER NAME=STATUS ...`: write FOLDER/report.txt and targets.md; 1 if a part failed, else 0."""
    folder, parts = Path(argv[0]), dict(part.split("=") for part in argv[1:])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = latest(row for path in sorted(folder.rglob("measurements.csv")) for row in read(path))
    lines = [f"GPU check of {now()}", *(f"{name}: {value}" for name, value in environment(device).items())]
    if device.type == "cpu":
        lines.append("PyTorch sees no GPU here: nothing below was measured on one")
    lines += [f"{path.stem}: {_test_counts(path)}" for path in sorted(folder.glob("*.xml"))]
    lines.append("rows: " + _status_counts(rows))
    lines += [
        f"part {name}: {'passed' if code == '0' else f'FAILED with status {code}'}" for name, code in parts.items()
    ]
    lines += ["", write_targets(folder), *_lost(rows)]
    text = "\n".join(lines)
    (folder / "report.txt").write_text(text + "\n")
    print(text)
    return 0 if all(code == "0" for code in parts.values()) else 1


def _test_counts(path: Path) -> str:
    """Counts of a JUnit file, or that the tests left none."""
    if path.stat().st_size == 0:
        return f"left no counts (see {path.stem}.txt)"
    suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
    total, failed, errors, skipped = (
        sum(int(suite.get(key, 0)) for suite in suites) for key in ("tests", "failures", "errors", "skipped")
    )
    return f"{total - failed - errors - skipped} passed, {failed} failed, {errors} errors, {skipped} skipped"


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
