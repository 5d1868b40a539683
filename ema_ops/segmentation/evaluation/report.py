"""Scores as a table, as JSON and as a picture of the confusion matrix."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from .metric import Scores

_NUMBERED = 30
"""Up to so many classes the cells of the picture have room for their numbers."""


def text_table(scores: Scores, classes: Sequence[str]) -> str:
    """IoU, accuracy and labelled pixels of every class, and the means; "-" where a class has no score."""
    rows = [("class", "IoU", "accuracy", "pixels")]
    numbers = zip(scores.class_iou.tolist(), scores.class_accuracy.tolist(), scores.pixels.tolist(), strict=True)
    for name, (iou, accuracy, pixels) in zip(classes, numbers, strict=True):
        rows.append((name, _shown(iou), _shown(accuracy), str(pixels)))
    rows.append(("mean", _shown(scores.mean_iou), _shown(scores.mean_accuracy), ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    rule = "-" * len(lines[0])
    summary = f"mIoU {_shown(scores.mean_iou)}, pixel accuracy {_shown(scores.pixel_accuracy)}"
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1].rstrip(), "", summary])


def write_report(out: Path, scores: Scores, classes: Sequence[str], settings: Mapping[str, Any]) -> list[Path]:
    """Write scores.json (with `settings`), table.txt and confusion.png to the folder `out`; returns their paths.

    Raises OSError naming the folder when one cannot be written.
    """
    numbers, table, picture = (out / name for name in ("scores.json", "table.txt", "confusion.png"))
    try:
        out.mkdir(parents=True, exist_ok=True)
        numbers.write_text(json.dumps(_content(scores, classes, settings), indent=1) + "\n", encoding="utf-8")
        table.write_text(text_table(scores, classes) + "\n", encoding="utf-8")
        confusion_figure(scores, classes).savefig(picture, dpi=120)
    # a full disk names no file
    except OSError as error:
        raise OSError(f"{out} cannot be written to: {error}") from error
    return [numbers, table, picture]


def confusion_figure(scores: Scores, classes: Sequence[str]) -> Figure:
    """The confusion matrix with every row divided by its pixels; rows of classes without a labelled pixel stay grey."""
    count = len(classes)
    numbered = count <= _NUMBERED
    cell, font, title_font = (0.36, 8, 10) if numbered else (0.15, 7, 20)
    edge = count * cell
    figure = Figure(figsize=(edge + 3.2, edge + 2.4), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("#dddddd")
    with np.errstate(invalid="ignore"):
        shares = scores.confusion.double().numpy() / scores.pixels.double().numpy()[:, None]
    # the square root shows rare confusions too
    image = axes.imshow(np.ma.masked_invalid(shares), cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    axes.set_xticks(range(count), classes, rotation=90, fontsize=font)
    axes.set_yticks(range(count), classes, fontsize=font)
    axes.set_xlabel("predicted class", fontsize=title_font)
    axes.set_ylabel("labelled class", fontsize=title_font)
    title = f"share of the pixels of each labelled class, mIoU {_shown(scores.mean_iou)}"
    axes.set_title(title, fontsize=title_font)
    if numbered:
        for row, column in zip(*np.nonzero(np.nan_to_num(shares) >= 0.005), strict=True):
            share = shares[row, column]
            colour = "white" if share > 0.4 else "black"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=colour)
    else:
        axes.tick_params(top=True, labeltop=True, right=True, labelright=True)
        axes.tick_params(axis="x", labelrotation=90)
    figure.colorbar(image, ax=axes, shrink=0.5, format=lambda share, _: f"{100 * share:.0f} %")
    return figure


def _content(scores: Scores, classes: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    numbers = zip(scores.class_iou.tolist(), scores.class_accuracy.tolist(), scores.pixels.tolist(), strict=True)
    return {
        "mean_iou": _number(scores.mean_iou),
        "mean_accuracy": _number(scores.mean_accuracy),
        "pixel_accuracy": _number(scores.pixel_accuracy),
        "classes": [
            {"name": name, "iou": _number(iou), "accuracy": _number(accuracy), "pixels": pixels}
            for name, (iou, accuracy, pixels) in zip(classes, numbers, strict=True)
        ],
        "settings": dict(settings),
        "confusion": scores.confusion.tolist(),
    }


def _number(value: float) -> float | None:
    """`value` as JSON knows it, which has no NaN."""
    return None if math.isnan(value) else value


def _shown(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"
