"""What the parts of `gpu_check.sh` leave while they run: a line a part, and one when a test begins and when it ends."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

FAILED = ("failed", "never ended")


@dataclass(frozen=True)
class Part:
    """A part of the check and how it ended: a status of 0 is success, "not run" means that no time was left."""

    name: str
    status: str
    seconds: int

    def __str__(self) -> str:
        how = {"0": "passed", "not run": "NOT RUN"}.get(self.status, f"FAILED with status {self.status}")
        return f"part {self.name}: {how}, {self.seconds} s"


@dataclass(frozen=True)
class Outcome:
    """A test: "passed", "skipped", "failed", or "never ended" if it began and the process was stopped."""

    test: str
    outcome: str
    recorded: dict[str, str] = field(default_factory=dict)


def read_parts(folder: Path) -> list[Part]:
    """The parts of all `parts.csv` below `folder`, in their order."""
    found = []
    for path in sorted(folder.rglob("parts.csv")):
        with path.open(newline="") as file:
            found += [Part(name, status, int(seconds)) for name, status, seconds in csv.reader(file)]
    return found


def read_outcomes(path: Path) -> list[Outcome]:
    """Every test of a file that the tests wrote, once; a failure anywhere in a test counts."""
    found: dict[str, Outcome] = {}
    for text in path.read_text().splitlines():
        if not text.endswith("}"):  # the process was stopped while it wrote
            continue
        line = json.loads(text)
        name, outcome = line["test"], line["outcome"]
        if outcome == "started":
            found.setdefault(name, Outcome(name, "never ended"))
        elif found.get(name, Outcome(name, "never ended")).outcome != "failed":
            found[name] = Outcome(name, outcome, line["recorded"])
    return list(found.values())


def outcomes(folder: Path, pattern: str = "*.jsonl") -> dict[str, list[Outcome]]:
    """The tests of every file below `folder` that fits `pattern`, by its name."""
    found: dict[str, list[Outcome]] = {}
    for path in sorted(folder.rglob(pattern)):
        found.setdefault(path.stem, []).extend(read_outcomes(path))
    return found


def properties(tests: Iterable[Outcome]) -> dict[str, list[float]]:
    """All numbers that tests recorded, by name; other values are left out."""
    found: dict[str, list[float]] = {}
    for name, value in _recorded(tests):
        try:
            number = float(value)
        except ValueError:
            continue
        found.setdefault(name, []).append(number)
    return found


def _recorded(tests: Iterable[Outcome]) -> Iterator[tuple[str, str]]:
    for test in tests:
        yield from test.recorded.items()
