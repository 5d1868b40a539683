"""Time and memory against N on logarithmic axes, as PNG files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .case import MODES
from .peers import BACKENDS, RIVALS
from .results import Row, latest

FIGURE = ("device", "dtype", "memory_order", "channels", "num_bases", "num_iters")
QUANTITIES = {"p50_ms": "time, ms (median)", "extra_mib": "peak extra memory, MiB"}
OURS = tuple(f"ema_ops/{name}" for name in BACKENDS)
FLOOR = "floor of EM attention"


def plot(rows: Iterable[Row], folder: Path) -> list[Path]:
    """One PNG for every device, dtype, memory order, C, K and T among the measured rows; returns the files.

    A row of axes for every batch size and quantity, a column for every mode. Rows without a figure (out of memory,
    not usable) are left out; the table has them.
    """
    figures: dict[tuple[str, ...], list[Row]] = {}
    for row in latest(rows):
        if row["status"] == "ok":
            figures.setdefault(tuple(row[column] for column in FIGURE), []).append(row)
    return [_figure(group, folder / f"{_file_name(key)}.png") for key, group in figures.items()]


def _figure(rows: list[Row], path: Path) -> Path:
    batches = sorted({int(row["batch"]) for row in rows})
    modes = [mode for mode in MODES if any(row["mode"] == mode for row in rows)]
    panels = [(batch, quantity) for batch in batches for quantity in QUANTITIES]
    figure = Figure(figsize=(5.2 * len(modes) + 2.2, 3.4 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), len(modes), squeeze=False, sharex=True)
    for line, (batch, quantity) in zip(axes, panels, strict=True):
        for ax, mode in zip(line, modes, strict=True):
            shown = [row for row in rows if row["mode"] == mode and int(row["batch"]) == batch]
            _lines(ax, shown, quantity, _names(rows))
            ax.set(xscale="log", yscale="log", title=f"{mode}, B = {batch}", ylabel=QUANTITIES[quantity])
            ax.grid(alpha=0.3, which="both")
    positions = sorted({int(row["positions"]) for row in rows})
    for ax in axes[-1]:
        ax.set_xlabel("positions N")
        ax.set_xticks(positions, [str(n) for n in positions])
        ax.set_xticks([], minor=True)
    named = {label: line for ax in axes.flat for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    labels = [name for name in (*_names(rows), FLOOR) if name in named]
    figure.legend([named[label] for label in labels], labels, loc="outside right upper", frameon=False)
    first = rows[0]
    sizes = f"C = {first['channels']}, K = {first['num_bases']}, T = {first['num_iters']}"
    figure.suptitle(f"{first['device']}, {first['dtype']}, {first['memory_order']}, {sizes}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def _names(rows: Iterable[Row]) -> list[str]:
    """Everyone in `rows`: ours first, each behind it with its parts and foldings, then the others."""
    order = (*OURS, *RIVALS)

    def place(name: str) -> tuple[int, str]:
        plain = name.partition(" ")[0].partition(":")[0]
        return (order.index(plain) if plain in order else len(order), name)

    return sorted({row["peer"] for row in rows}, key=place)


def _lines(ax, rows: list[Row], quantity: str, names: list[str]) -> None:
    for index, name in enumerate(names):
        mine = [row for row in rows if row["peer"] == name]
        points = sorted((int(row["positions"]), float(_shown(row, quantity))) for row in mine)
        if points:
            ours = name.startswith("ema_ops/")
            width, marker = (2.5, "o") if ours else (1.2, "s")
            ax.plot(*zip(*points, strict=True), marker=marker, linewidth=width, color=f"C{index}", label=name)
    if quantity == "p50_ms":
        # the largest of each N: a peer without gradient has the floor of its forward pass
        floor = dict(sorted((int(row["positions"]), float(row["floor_ms"])) for row in rows if row["floor_ms"]))
        if floor:
            ax.plot(list(floor), list(floor.values()), color="black", linestyle=":", label=FLOOR)


def _shown(row: Row, quantity: str) -> str:
    """The number of a row; of times that of the graph's replay, where there was one."""
    return (quantity == "p50_ms" and row["graph_p50_ms"]) or row[quantity]


def _file_name(key: tuple[str, ...]) -> str:
    device, dtype, order, channels, bases, iters = key
    name = f"bench-{device}-{dtype}-{order}-C{channels}-K{bases}-T{iters}"
    return re.sub(r"[^A-Za-z0-9_.]+", "-", name)
