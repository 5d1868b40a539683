"""Rows of measurements: the CSV file, ratios between rows, and the table for people."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from .peers import RIVALS

Row = dict[str, str]

RATIOS = {name: f"speedup_over_{name}" for name in RIVALS}
CASE = ("device", "dtype", "memory_order", "batch", "channels", "height", "width", "num_bases", "num_iters", "mode")
COLUMNS = (
    "utc",
    *CASE,
    "positions",
    "peer",
    "kernel",
    "status",
    "note",
    "p20_ms",
    "p50_ms",
    "p80_ms",
    "repeats",
    "graph_p20_ms",
    "graph_p50_ms",
    "graph_p80_ms",
    "extra_mib",
    "floor_ms",
    "floor_bound",
    "floor_source",
    "over_floor",
    "graph_over_floor",
    *RATIOS.values(),
    "checked_images",
    "error_y",
    "allowed_y",
    "error_grad_x",
    "allowed_grad_x",
    "seed",
    "seconds",
    "torch",
    "triton",
    "cuda",
    "python",
    "ema_ops",
    "commit",
    "threads",
    "float32_matmul",
)


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"


def add_ratios(rows: list[Row]) -> None:
    """Fill the `speedup_over_*` columns of the rows of one case and mode: p50 of the rival over the row's own."""
    times = {row["peer"]: float(row["p50_ms"]) for row in rows if row["p50_ms"]}
    for row in rows:
        for name, column in RATIOS.items():
            if row["p50_ms"] and name in times:
                row[column] = number(times[name] / times[row["peer"]])


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add rows to the CSV file at `path`, which is made with a header when absent.

    ValueError when the file has other columns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        read(path)
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def read(path: Path) -> list[Row]:
    """All rows of the CSV file at `path`; ValueError when its columns are not ours."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path} has other columns than this version writes: expected another --out folder")
        return list(reader)


def latest(rows: Iterable[Row]) -> list[Row]:
    """Only the row of every case and peer that was measured last, whatever file it is in."""
    in_time = sorted(rows, key=lambda row: row["utc"])
    return list({tuple(row[column] for column in (*CASE, "peer")): row for row in in_time}.values())


def table(rows: Iterable[Row]) -> str:
    """Time, memory and ratios of every row as text, one block for a case and mode."""
    blocks: dict[tuple[str, ...], list[Row]] = {}
    for row in latest(rows):
        blocks.setdefault(tuple(row[column] for column in CASE), []).append(row)
    return "\n\n".join(_block(block) for block in blocks.values())


def _block(rows: list[Row]) -> str:
    first = rows[0]
    title = (
        f"{first['mode']}  {first['device']}  {first['dtype']} {first['memory_order']}  B={first['batch']} "
        f"C={first['channels']} K={first['num_bases']} T={first['num_iters']} "
        f"{first['height']}x{first['width']} (N={first['positions']})"
    )
    fastest = min((float(row["p50_ms"]) for row in rows if row["p50_ms"]), default=0.0)
    graph = any(row["graph_p50_ms"] for row in rows)
    header = ["", "p20 ms", "p50 ms", "p80 ms", *(["graph p50"] if graph else []), "extra MiB", "/ floor", "/ fastest"]
    lines = [header]
    for row in rows:
        name = f"{row['peer']} ({row['kernel']})" if row["kernel"] else row["peer"]
        if row["status"] != "ok":
            lines.append([name, f"{row['status']}: {row['note']}" if row["note"] else row["status"]])
            continue
        over_fastest = number(float(row["p50_ms"]) / fastest)
        cells = [name, row["p20_ms"], row["p50_ms"], row["p80_ms"], *([row["graph_p50_ms"] or "-"] if graph else [])]
        lines.append([*cells, row["extra_mib"], row["over_floor"] or "-", over_fastest])
    return "\n".join([title, *_align(lines)])


def _align(lines: list[list[str]]) -> list[str]:
    full = [line for line in lines if len(line) > 2]
    widths = [max(len(line[i]) for line in full) for i in range(len(full[0]))]
    name_width = max(len(line[0]) for line in lines)
    return [
        line[0].ljust(name_width)
        + "  "
        + (
            "  ".join(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
            if line in full
            else line[1]
        )
        for line in lines
    ]
