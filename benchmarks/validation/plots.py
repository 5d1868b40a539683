"""The pictures of the validation report, each as PNG bytes."""

from __future__ import annotations

import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from .cost import Cost
from .trainings import Outcome
from .variants import NUM_ITERS

DOT, LINE = "#1f6feb", "#8a8f98"


def curves(outcomes: Sequence[Outcome]) -> bytes:
    """mIoU on validation against the step, one line a seed, one colour a backend."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots()
    backends = list(dict.fromkeys(outcome.variant.backend for outcome in outcomes))
    for outcome in outcomes:
        variant = outcome.variant
        label = f"{variant.backend}, seed {variant.seed}"
        axes.plot(*zip(*outcome.curve, strict=True), color=f"C{backends.index(variant.backend)}", label=label)
    axes.set(xlabel="step", ylabel="mIoU on validation", ylim=(0, 1))
    axes.legend(frameon=False, fontsize=8)
    return _png(figure, [axes])


def ablations(answers: Mapping[str, Mapping[str, Sequence[float]]]) -> bytes:
    """One panel a question: the mIoU of every seed for every answer, and a line through the means."""
    figure = Figure(figsize=(12, 3.2 * -(-len(answers) // 2)), layout="constrained")
    shape = (-(-len(answers) // 2), 2)
    grid: list[Any] = []
    for place in range(1, len(answers) + 1):
        # one scale for all, so that noise looks as small as it is
        grid.append(figure.add_subplot(*shape, place, sharey=grid[0] if grid else None))
    for axes, (question, by_answer) in zip(grid, answers.items(), strict=True):
        for place, values in enumerate(by_answer.values()):
            axes.plot([place] * len(values), values, "o", color=DOT, alpha=0.7)
        places = range(len(by_answer))
        axes.plot(places, [statistics.fmean(values) for values in by_answer.values()], color=LINE, zorder=0)
        axes.set_xticks(places, list(by_answer))
        axes.set(xlabel=question, ylabel="mIoU on validation")
    return _png(figure, grid)


def trained_and_evaluated_iters(matrix: Sequence[Sequence[float]]) -> bytes:
    """Mean mIoU with T at training in rows and T at evaluation in columns, both as in `NUM_ITERS`."""
    figure = Figure(figsize=(5.6, 4.6), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(matrix, cmap="viridis")
    # viridis is dark below
    middle = 0.4 * min(map(min, matrix)) + 0.6 * max(map(max, matrix))
    for row, values in enumerate(matrix):
        for column, value in enumerate(values):
            shade = "white" if value < middle else "black"
            axes.text(column, row, f"{value:.3f}", ha="center", va="center", color=shade, fontsize=9)
    ticks = range(len(NUM_ITERS))
    axes.set_xticks(ticks, [str(t) for t in NUM_ITERS])
    axes.set_yticks(ticks, [str(t) for t in NUM_ITERS])
    axes.set(xlabel="T at evaluation", ylabel="T at training")
    figure.colorbar(image, label="mIoU")
    return _png(figure, [])


def cost(rows: Sequence[Cost]) -> bytes:
    """Time and peak memory of every context module, one row of bars a mode."""
    modes = list(dict.fromkeys(row.mode for row in rows))
    figure = Figure(figsize=(11, 2.2 * len(modes)), layout="constrained")
    grid = figure.subplots(len(modes), 2, squeeze=False)
    for line, mode in zip(grid, modes, strict=True):
        shown = [row for row in rows if row.mode == mode][::-1]
        names = [row.context for row in shown]
        colours = [DOT if name.startswith("EM attention") else LINE for name in names]
        line[0].barh(names, [row.milliseconds / 1000 for row in shown], color=colours)
        line[1].barh(names, [row.peak_mib / 1024 for row in shown], color=colours)
        line[0].set(title=mode, xlabel="seconds")
        line[1].set(title=mode, xlabel="peak memory, GiB", yticks=[])
    return _png(figure, grid.ravel())


def _png(figure: Figure, axes: Iterable[matplotlib.axes.Axes]) -> bytes:
    for one in axes:
        one.grid(alpha=0.25)
        one.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
