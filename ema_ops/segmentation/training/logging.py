"""What a run tells while it goes: two tables, TensorBoard, and nothing twice after a resume."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from ..evaluation import Scores
from .files import replacing
from .step import StepResult


class Table:
    """A CSV file with a row for some steps; the first column is the step. Numbers are written so that they read back.

    Args:
        path: the file. What it holds of steps after `keep_until` is dropped.
        columns: names of the columns after the step.
        keep_until: the step from which a run goes on, 0 for a new file.
    """

    def __init__(self, path: Path, columns: Sequence[str], *, keep_until: int) -> None:
        self.path = path
        rows = _rows(path, keep_until) if keep_until else []
        with replacing(path) as part, part.open("w", newline="") as file:
            csv.writer(file).writerows([["step", *columns], *rows])
        self._file = path.open("a", newline="")
        self._writer = csv.writer(self._file)

    def add(self, step: int, *values: float | None) -> None:
        """Write a row; None becomes an empty cell. Raises OSError naming the file."""
        try:
            self._writer.writerow([step, *("" if value is None else repr(value) for value in values)])
            self._file.flush()
        except OSError as error:
            raise OSError(f"{self.path} could not be written ({error})") from error

    def make_durable(self) -> None:
        """Wait until what was written survives a crash of the machine."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _rows(path: Path, keep_until: int) -> list[list[str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        columns, *rows = csv.reader(file)
    # a row that was cut short belongs to a step after the last checkpoint, even if 1 is all that is left of 12
    return [row for row in rows if len(row) == len(columns) and int(row[0]) <= keep_until]


class Log:
    """`log.csv`, `validation.csv`, and TensorBoard's `tensorboard/train` and `tensorboard/validation` in `out`.

    Args:
        out: a folder that exists.
        classes: names of the classes.
        step: the step from which the run goes on, 0 for a new one; what is there of later steps goes.
        validated: the same for validations, of which the last one may have to be done again.
    """

    def __init__(self, out: Path, classes: Sequence[str], *, step: int, validated: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        board = out / "tensorboard"
        self.classes = classes
        self.steps = Table(out / "log.csv", ("loss", "auxiliary_loss", "lr", "gradient_norm"), keep_until=step)
        self.validations = Table(out / "validation.csv", ("mean_iou", "pixel_accuracy", *classes), keep_until=validated)
        self._steps_board = SummaryWriter(str(board / "train"), purge_step=step + 1)
        self._validations_board = SummaryWriter(str(board / "validation"), purge_step=validated + 1)

    def step(self, step: int, result: StepResult, rate: float) -> None:
        """A row of `log.csv`."""
        self.steps.add(step, result.loss, result.auxiliary_loss, rate, result.gradient_norm)

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """Numbers of a step for TensorBoard; None is left out."""
        for name, value in values.items():
            if value is not None:
                self._steps_board.add_scalar(name, value, step)

    def scores(self, step: int, scores: Scores) -> None:
        """A row of `validation.csv`, and the same for TensorBoard."""
        names = ("mean_iou", "pixel_accuracy", *(f"iou/{name}" for name in self.classes))
        values = (scores.mean_iou, scores.pixel_accuracy, *scores.class_iou.tolist())
        self.validations.add(step, *values)
        for name, value in zip(names, values, strict=True):
            self._validations_board.add_scalar(name, value, step)

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Pictures uint8 [H, W, 3] for TensorBoard."""
        for name, picture in pictures.items():
            self._validations_board.add_image(name, picture, step, dataformats="HWC")

    def make_durable(self) -> None:
        """Everything so far is on the disk."""
        self.steps.make_durable()
        self.validations.make_durable()
        self._steps_board.flush()
        self._validations_board.flush()

    def close(self) -> None:
        """Close all files."""
        self.steps.close()
        self.validations.close()
        self._steps_board.close()
        self._validations_board.close()


class Speed:
    """Pictures a second since the last `restart`, over the time that was `measured`."""

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self.restart()

    def restart(self) -> None:
        """Forget what was measured so far."""
        self._steps, self._seconds = 0, 0.0

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Count the block as one step."""
        started = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - started
        self._steps += 1

    @property
    def images(self) -> float:
        """Pictures of all processes a second."""
        return self._steps * self._batch / self._seconds


def memory(device: torch.device) -> float | None:
    """Largest memory of tensors on a GPU so far in GiB; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
