"""The report's pictures, each as PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from ..segmentation.data import IGNORE, VOCSegmentation, voc_palette

if TYPE_CHECKING:
    from .train import Result

COLOURS = ("#8a8f98", "#e08a1e", "#1f6feb", "#8e5bd0")
"""One colour a network, in the order of `network.CONTEXTS`."""

_SMOOTHING = 20


def learning_curves(results: Sequence[Result]) -> bytes:
    """Training loss (running mean) and validation mIoU of all networks against the step."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    loss, iou = figure.subplots(1, 2)
    for result, colour in zip(results, COLOURS, strict=True):
        window = min(_SMOOTHING, len(result.losses))
        smooth = np.convolve(result.losses, np.ones(window) / window, mode="valid")
        loss.plot(np.arange(window, len(result.losses) + 1), smooth, color=colour, label=result.name)
        steps, values = zip(*result.curve, strict=True)
        iou.plot(steps, values, color=colour, marker="o", markersize=3, label=result.name)
    loss.set(xlabel="step", ylabel="training loss", yscale="log")
    iou.set(xlabel="step", ylabel="mIoU on validation", ylim=(0, 1))
    iou.legend(frameon=False, fontsize=8, loc="upper left")
    for axes in (loss, iou):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


@torch.no_grad()
def predictions(results: Sequence[Result], val_set: VOCSegmentation, indices: Sequence[int]) -> bytes:
    """One row a picture: the picture, its labels, and what every network says."""
    titles = ["picture", "labels", *(result.name for result in results)]
    figure = Figure(figsize=(2 * len(titles), 1.62 * len(indices) + 0.2), layout="constrained")
    grid = figure.subplots(len(indices), len(titles), squeeze=False)
    for row, index in zip(grid, indices, strict=True):
        image, labels = val_set[index]
        shown = [image.permute(1, 2, 0).numpy(), coloured(labels.numpy())]
        for result in results:
            result.network.eval()
            guess = result.network(image.unsqueeze(0)).argmax(dim=1)[0]
            shown.append(coloured(guess.masked_fill(labels == IGNORE, IGNORE).numpy()))
        for axes, picture in zip(row, shown, strict=True):
            axes.imshow(picture)
            axes.set_axis_off()
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=9)
    return _png(figure)


def basis_maps(picture: Image.Image, maps: np.ndarray) -> bytes:
    """The picture and, for every basis, where its responsibility `maps` [K, H, W] is high, strongest basis first."""
    columns = 6
    rows = -(-(len(maps) + 1) // columns)
    aspect = min(max(picture.height / picture.width, 0.4), 2.5)
    figure = Figure(figsize=(2 * columns, rows * (2 * aspect + 0.3)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for empty in axes:
        empty.set_axis_off()
    axes[0].imshow(np.asarray(picture))
    axes[0].set_title("picture", fontsize=9)
    order = np.argsort(-maps.mean(axis=(1, 2)), kind="stable")
    for panel, basis in zip(axes[1:], order, strict=False):
        panel.imshow(overlay(picture, maps[basis]))
        low, high = 100 * maps[basis].min(), 100 * maps[basis].max()
        panel.set_title(f"basis {basis}: {low:.0f} to {high:.0f} %", fontsize=9)
    return _png(figure)


def overlay(picture: Image.Image, attention: np.ndarray) -> np.ndarray:
    """The grey, darkened picture with `attention` [H, W], stretched from its lowest to its highest value, on it."""
    grey = np.asarray(picture.convert("L").convert("RGB"), dtype=np.float32) / 255
    low, high = float(attention.min()), float(attention.max())
    strength = ((attention - low) / max(high - low, 1e-6))[..., None]
    heat = matplotlib.colormaps["inferno"](strength[..., 0])[..., :3]
    return np.clip(0.45 * grey * (1 - strength) + (0.25 * grey + 0.75 * heat) * strength, 0, 1)


def coloured(labels: np.ndarray) -> np.ndarray:
    """Labels [H, W] in the colours of PASCAL VOC, uint8 [H, W, 3]."""
    return voc_palette()[labels]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
