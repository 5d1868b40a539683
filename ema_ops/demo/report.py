"""The report: one HTML file that holds everything, pictures included."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

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


@dataclass(frozen=True)
class Figure:
    """One picture of the report: PNG bytes and what it shows."""

    png: bytes
    caption: str

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


def lines(results: Sequence[Result], costs: dict[str, Cost]) -> list[Line]:
    """The result table, one line a network."""
    return [Line(r.name, r.mean_iou, r.marked_iou, costs[r.name].milliseconds, costs[r.name].peak_mib) for r in results]


def text_table(table: Sequence[Line]) -> str:
    """The result table for a terminal."""
    head = f"{'context layer':24} {'mIoU':>6} {'marked':>7} {'ms/step':>9} {'peak MiB':>9}"
    rows = [f"{x.name:24} {x.miou:6.3f} {x.marked:7.3f} {x.milliseconds:9.1f} {x.mib:9.1f}" for x in table]
    return "\n".join([head, "-" * len(head), *rows])


def write(path: Path, template: str, **content: Any) -> None:
    """Fill `template`, a file beside this module, and write it to `path`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    path.write_text(environment.get_template(template).render(**content), encoding="utf-8")
