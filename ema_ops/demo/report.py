"""The result table of the demo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .measure import Cost
from .train import Result


@dataclass(frozen=True)
class Line:
    """One line of the result table."""

    name: str
    miou: float
    marked: float
    milliseconds: float
    mib: float


def lines(results: Sequence[Result], costs: dict[str, Cost]) -> list[Line]:
    """The result table, one line a network."""
    return [Line(r.name, r.mean_iou, r.marked_iou, costs[r.name].milliseconds, costs[r.name].peak_mib) for r in results]


def text_table(table: Sequence[Line]) -> str:
    """The result table for a terminal."""
    head = f"{'context layer':24} {'mIoU':>6} {'marked':>7} {'ms/step':>9} {'peak MiB':>9}"
    rows = [f"{x.name:24} {x.miou:6.3f} {x.marked:7.3f} {x.milliseconds:9.1f} {x.mib:9.1f}" for x in table]
    return "\n".join([head, "-" * len(head), *rows])
