"""From pictures to classes: which views of a picture the network sees, and how its answers are put together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import IGNORE
from .memory import naming_size

MODES = ("whole", "slide")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Inference:
    """How pictures are judged.

    A *view* is a picture at one scale, as it is or mirrored. The logits of a view are brought back to the size of the
    picture; with several views their softmax probabilities are averaged, all with the same weight. The multi-scale
    evaluation of the paper was never published, so nobody can say whether it averaged the same.

    "whole" shows the network the whole view, with zeros (the mean colour) below and to the right; they are cut off the
    logits again. The padded size is 1 mod output stride as in the official evaluation, or a multiple of the output
    stride where the network does not align corners, as mmsegmentation's pictures and crops are: cells and pixels then
    lie on each other as in training. Networks without `options["output_stride"]` get no padding. "slide" shows it
    windows; where they overlap their logits are averaged. Windows at the border are moved inside, views smaller than a
    window are padded to it.

    Attributes:
        scales: factors of height and width, each at least 1 pixel.
        flip: judge the mirrored pictures as well.
        mode: "whole" or "slide".
        window: (height, width) of a window in pixels, for "slide".
        stride: (down, right) distance of windows in pixels, at most the window; None for two thirds of it.
        precision: "float32", or "bfloat16" or "float16" autocast around the network; the rest is float32.
        channels_last: pictures in this memory order; the network's weights should be in it too.

    Raises:
        ValueError, TypeError: an option does not fit.
    """

    scales: Sequence[float] = (1.0,)
    flip: bool = False
    mode: str = "whole"
    window: Sequence[int] | None = None
    stride: Sequence[int] | None = None
    precision: str = "float32"
    channels_last: bool = False

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        set_field(self, "scales", _checked_scales(self.scales))
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}: expected one of {', '.join(map(repr, MODES))}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}: expected one of {', '.join(map(repr, PRECISIONS))}")
        if self.mode == "whole":
            for name in ("window", "stride"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is {getattr(self, name)!r} with mode 'whole': expected mode 'slide'")
            return
        window = _pair("window", self.window)
        stride = tuple(math.ceil(size * 2 / 3) for size in window) if self.stride is None else self.stride
        stride = _pair("stride", stride)
        if stride[0] > window[0] or stride[1] > window[1]:
            raise ValueError(f"stride is {stride}: expected at most the window {window}, or pixels would be left out")
        set_field(self, "window", window)
        set_field(self, "stride", stride)

    @torch.no_grad()
    def classes(self, network: nn.Module, images: Tensor, num_classes: int) -> Tensor:
        """The most probable class of every pixel, uint8 [B, H, W], of normalised `images` [B, 3, H, W].

        Pixels whose logits are NaN have no class but `IGNORE`; float16 may overflow.

        Raises ValueError when the network does not tell `num_classes` classes apart.
        """
        views = list(self._views())
        # softmax keeps the order, so one view needs none
        scores = self._logits(network, images, *views[0]) if len(views) == 1 else self.probabilities(network, images)
        if scores.shape[1] != num_classes:
            raise ValueError(f"the network has {scores.shape[1]} classes: expected {num_classes} as the data set")
        best, classes = scores.max(dim=1)
        return classes.to(torch.uint8).masked_fill_(best.isnan(), IGNORE)

    @torch.no_grad()
    def probabilities(self, network: nn.Module, images: Tensor) -> Tensor:
        """The average over the views of their probabilities, float32 [B, C, H, W], of normalised `images` [B, 3, H, W].

        The views are judged one after the other and added at once, so that memory holds one besides the sum.
        """
        total, count = None, 0
        for scale, mirrored in self._views():
            view = self._logits(network, images, scale, mirrored).softmax(dim=1)
            total = view if total is None else total.add_(view)
            count += 1
        assert total is not None
        return total.div_(count)

    def _views(self) -> Iterator[tuple[float, bool]]:
        for scale in self.scales:
            yield scale, False
            if self.flip:
                yield scale, True

    def _logits(self, network: nn.Module, images: Tensor, scale: float, mirrored: bool) -> Tensor:
        """float32 [B, C, H, W] at the size of `images`, whatever the view."""
        size = images.shape[-2:]
        view_size = tuple(max(1, round(edge * scale)) for edge in size)
        # smoothed when made smaller, as the training pictures are
        view = images if view_size == size else _resized(images, view_size, antialias=True)
        view = view.flip(-1) if mirrored else view
        whole_or_slide = self._whole if self.mode == "whole" else self._slide
        with naming_size(len(images), size[0], size[1], scale):
            logits = whole_or_slide(network, view).float()
            logits = logits if view_size == size else _resized(logits, size)
        return logits.flip(-1) if mirrored else logits

    def _whole(self, network: nn.Module, view: Tensor) -> Tensor:
        height, width = view.shape[-2:]
        padded = _padded(view, *(padded_size(edge, *_grid(network)) for edge in (height, width)))
        return self._forward(network, padded)[..., :height, :width]

    def _slide(self, network: nn.Module, view: Tensor) -> Tensor:
        assert self.window is not None
        assert self.stride is not None
        height, width = view.shape[-2:]
        view = _padded(view, *(max(edge, length) for edge, length in zip((height, width), self.window, strict=True)))
        tops, lefts = (
            window_starts(edge, length, step)
            for edge, length, step in zip(view.shape[-2:], self.window, self.stride, strict=True)
        )
        total, times = None, view.new_zeros(view.shape[-2:])
        for top in tops:
            for left in lefts:
                place = (..., slice(top, top + self.window[0]), slice(left, left + self.window[1]))
                logits = self._forward(network, view[place])
                if total is None:
                    total = logits.new_zeros((*logits.shape[:2], *view.shape[-2:]), dtype=torch.float32)
                total[place] += logits
                times[place] += 1
        assert total is not None
        return total.div_(times)[..., :height, :width]

    def _forward(self, network: nn.Module, images: Tensor) -> Tensor:
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        dtype = PRECISIONS[self.precision]
        with torch.autocast(images.device.type, dtype, enabled=dtype is not torch.float32):
            return network(images)


def padded_size(edge: int, output_stride: int, remainder: int) -> int:
    """The least size from `edge` on that is `remainder` mod `output_stride`."""
    return edge + (remainder - edge) % output_stride


def window_starts(edge: int, length: int, step: int) -> list[int]:
    """First pixels of the windows of `length` that cover `edge` pixels; the last one is moved inside."""
    last = edge - length
    return [*range(0, last, step), last]


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """The network in evaluation mode; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _resized(images: Tensor, size: Sequence[int], antialias: bool = False) -> Tensor:
    return F.interpolate(images, size=tuple(size), mode="bilinear", align_corners=False, antialias=antialias)


def _padded(images: Tensor, height: int, width: int) -> Tensor:
    return F.pad(images, (0, width - images.shape[-1], 0, height - images.shape[-2]))


def _grid(network: nn.Module) -> tuple[int, int]:
    """Output stride, and what is left of a size with whole cells: 1 if the corners are cells, 0 if they are edges."""
    options = getattr(network, "options", None) or {}
    return options.get("output_stride", 1), int(options.get("align_corners", True))


def _checked_scales(scales: Any) -> tuple[float, ...]:
    scales = tuple(scales)
    if not scales:
        raise ValueError("scales is empty: expected at least one")
    for scale in scales:
        if isinstance(scale, bool) or not isinstance(scale, (int, float)):
            raise TypeError(f"scales has {scale!r} ({type(scale).__name__}): expected numbers")
        if not 0 < scale < math.inf:
            raise ValueError(f"scales has {scale}: expected positive numbers")
    return tuple(map(float, scales))


def _pair(name: str, value: Any) -> tuple[int, int]:
    if value is None:
        raise ValueError(f"{name} is None with mode 'slide': expected (height, width) in pixels")
    pair = tuple(value) if isinstance(value, Sequence) else (value,)
    if len(pair) != 2 or not all(isinstance(edge, int) and not isinstance(edge, bool) and edge > 0 for edge in pair):
        raise ValueError(f"{name} is {value!r}: expected two positive integers, height and width in pixels")
    return pair
