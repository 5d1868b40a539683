"""Predictions for videos: the overlay as a video, and palette masks of the frames. Needs the extra `ema_ops[video]`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch

from .drawing import Painter
from .pictures import check_not_overwritten
from .predict import Frame, Prediction, Predictor
from .writing import Writer, save_png

CODECS = ("libx264", "libopenh264", "mpeg4")
"""Encoders in the order they are looked for in the build of FFmpeg: H.264, else MPEG-4."""


class Result(NamedTuple):
    """The overlay at `path`, how many `frames` it has, and how many the video said it has (None: it did not say)."""

    path: Path
    frames: int
    expected: int | None


def predict_video(
    predictor: Predictor,
    painter: Painter,
    path: Path,
    out: Path,
    *,
    masks: bool = False,
    started: Callable[[int | None], object] = lambda frames: None,
    done: Callable[[int], object] = lambda frame: None,
) -> Result:
    """Write the overlay of the video at `path` to `out`/overlays/NAME.mp4.

    It has the size of the video as a player shows it, and its mean frame rate as a constant rate. Sound is not kept.
    With `masks`, the palette mask of every frame is written to `out`/masks/NAME/000000.png and so on. `started` is
    called with the number of frames, None when the file does not say; `done` after every frame with its number.

    Raises:
        ValueError: the result would overwrite the video.
        OSError: the file is no video, has no picture or is damaged, or a result cannot be written. All name the file.
    """
    target = out / "overlays" / f"{path.stem}.mp4"
    check_not_overwritten([target], [path])
    try:
        source = av.open(str(path))
    except av.FFmpegError as error:
        raise OSError(f"{path} cannot be opened as a video ({error.strerror}): expected a file FFmpeg reads") from error
    with source:
        if not source.streams.video:
            raise OSError(f"{path} has no video in it: expected at least one stream of pictures")
        stream = source.streams.video[0]
        stream.thread_type = "AUTO"
        rate = stream.average_rate or stream.guessed_rate
        if not rate:
            raise OSError(f"{path} does not tell its frame rate: expected a video with one")
        expected = stream.frames or None
        started(expected)
        encoder = _Encoder(target, rate)

        def write(prediction: Prediction[_Place]) -> None:
            overlay = np.asarray(painter.overlay(prediction.pixels, prediction.classes))
            encoder.add(overlay, prediction.key.aspect)
            if masks:
                save_png(
                    painter.mask(prediction.classes), out / "masks" / path.stem / f"{prediction.key.number:06}.png"
                )

        try:
            with Writer(threads=1) as writer:
                for prediction in predictor(_frames(path, source)):
                    writer.submit(write, prediction)
                    done(prediction.key.number)
            encoder.close()
        except BaseException:
            encoder.discard()
            raise
    return Result(target, encoder.frames, expected)


class _Place(NamedTuple):
    """Frame `number` of the video at `path`; `aspect` is the width of its pixels over their height, if told."""

    path: Path
    number: int
    aspect: Fraction | None

    def __str__(self) -> str:
        return f"{self.path}, frame {self.number}"


def _frames(path: Path, source: Any) -> Iterator[Frame[_Place]]:
    """The frames of the first video stream, turned as a player shows them."""
    number, size, aspect = 0, None, source.streams.video[0].sample_aspect_ratio
    try:
        for frame in source.decode(video=0):
            turns = round(frame.rotation / 90)
            pixels = np.rot90(frame.to_ndarray(format="rgb24"), turns)
            if size is not None and pixels.shape != size:
                raise OSError(f"{path} changes its size to {pixels.shape[1]} x {pixels.shape[0]} at frame {number}")
            size = pixels.shape
            place = _Place(path, number, 1 / aspect if aspect and turns % 2 else aspect)
            yield Frame(place, torch.from_numpy(pixels.copy()))
            number += 1
    except av.FFmpegError as error:
        raise OSError(
            f"{path} cannot be decoded after frame {number} ({error.strerror}): expected a whole video"
        ) from error
    if number == 0:
        raise OSError(f"{path} has no frames: expected at least one")


class _Encoder:
    """A video at `path`, begun with its first frame. Raises OSError naming the file."""

    def __init__(self, path: Path, rate: Fraction) -> None:
        self.path = path
        # MPEG-4 counts time in 16 bits
        self.rate = Fraction(rate).limit_denominator(max(1, min(1001, int(65535 / rate))))
        self.frames = 0
        self.container: Any = None
        self.stream: Any = None

    def add(self, pixels: np.ndarray, aspect: Fraction | None) -> None:
        """Append the frame `pixels` uint8 [H, W, 3], whose pixels are `aspect` times as wide as high."""
        try:
            if self.container is None:
                self._begin(pixels.shape[0], pixels.shape[1], aspect)
            self.container.mux(self.stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            self.frames += 1
        except (OSError, av.FFmpegError) as error:
            raise OSError(f"{self.path} cannot be written: {error}") from error

    def close(self) -> None:
        """Write what the encoder still holds."""
        try:
            self.container.mux(self.stream.encode(None))
            self.container.close()
        except (OSError, av.FFmpegError) as error:
            raise OSError(f"{self.path} cannot be written: {error}") from error

    def discard(self) -> None:
        """Remove the file, which is not whole."""
        if self.container is not None:
            self.container.close()
            self.path.unlink(missing_ok=True)

    def _begin(self, height: int, width: int, aspect: Fraction | None) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        codec = next(name for name in CODECS if name in av.codecs_available)
        self.container = av.open(str(self.path), "w")
        self.stream = self.container.add_stream(codec, rate=self.rate)
        self.stream.height, self.stream.width = height, width
        # half the colour resolution, as every player knows it, needs even sizes
        self.stream.pix_fmt = "yuv420p" if height % 2 == width % 2 == 0 or codec != "libx264" else "yuv444p"
        if aspect:
            self.stream.sample_aspect_ratio = aspect
