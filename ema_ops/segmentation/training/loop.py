"""A training run from the first step to the last, interrupted or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
import yaml
from tqdm import tqdm

from ...out_of_memory import is_out_of_memory
from ..config import Config
from ..data import Batch, open_dataset, training_batches
from ..evaluation import Stopped, evaluate
from ..models.checkpoints import save_network
from .checkpoints import BEST, LATEST, check_out, fingerprint, read_training
from .distributed import World, world
from .failure import failure_report, no_memory, summary, write_report
from .files import Folder, remove_parts, replacing
from .logging import Log, Speed, memory
from .network import new_network
from .optimizer import learning_rate, make_optimizer, set_learning_rate
from .pictures import judged_pictures
from .step import NotFiniteError, StepResult, TrainingStep
from .stopping import StopRequest

FAILURE = "nonfinite.json"


@dataclass(frozen=True)
class Best:
    """The best validation so far: mean IoU, 0 to 1, and its step."""

    step: int
    mean_iou: float


@dataclass(frozen=True)
class Summary:
    """How a run ended: its last step, the best validation (None without any), and the signal that stopped it."""

    step: int
    best: Best | None
    signal: int | None


def train(config: Config, *, resume: bool = False) -> Summary:
    """Train as `config` says, alone or as one of the processes that torchrun started.

    Everything is written to `config.out`: `latest.pt` and `best.pt`, `log.csv` with a row for every step,
    `validation.csv`, TensorBoard's events in `tensorboard`, and the config as `config.yaml`. SIGINT and SIGTERM end
    the run after the step, or after the batch of a validation, with a checkpoint. With `resume` a run goes on from
    `latest.pt`; on the CPU, with the same number of processes and threads, it then takes bitwise the same steps as one
    that was never interrupted.

    Raises:
        ValueError, TypeError: a setting does not fit; `out` has a checkpoint and `resume` is False, or one of other
            settings.
        FileNotFoundError: there is nothing to resume, or a part of the data is missing.
        OSError: a picture cannot be read, a file not written, or the memory of a device is too small; the checkpoint
            before is kept. Or another run is writing to `out`.
        FloatingPointError: a loss or gradient was not finite; `nonfinite.json` in `out` says where.
    """
    with world(config.training.device) as place, StopRequest() as stop:
        if config.training.threads is not None:
            torch.set_num_threads(config.training.threads)
        return _Run(config, place, resume=resume).go(stop)


class _Run:
    """Everything that a run holds between its steps."""

    def __init__(self, config: Config, place: World, *, resume: bool) -> None:
        self.config, self.world, self.resume = config, place, resume
        self.log: Log | None = None
        self.step, self.validated = 0, 0
        self.best: Best | None = None
        _check_share(config, place)
        check_out(config.out, resume=resume)
        self.train_set, self.val_set = (
            open_dataset(config.data.kind, config.data.root, split, **config.data.options)
            for split in (config.data.train_split, config.data.val_split)
        )
        self.network = new_network(config, self.train_set.classes, place, first=not resume)
        self.optimizer = make_optimizer(self.network, config.optimizer)
        self.training = TrainingStep(self.network, self.optimizer, place, config.training)

    def go(self, stop: StopRequest) -> Summary:
        """All steps that are left."""
        self.network.train()
        with self._prepared_out(), self._open_log() as self.log, self._bar() as bar:
            signal = self._validate(stop) if self._validation_is_due() else None
            if signal is None and self.step < self.config.training.steps:
                signal = self._steps(bar, stop)
        return Summary(self.step, self.best, signal)

    def _restore(self) -> None:
        state, training = read_training(self.config.out, self.config, self.train_set)
        self.network.load_state_dict(state)
        self.optimizer.load_state_dict(training["optimizer"])
        self.training.scaler.load_state_dict(training["scaler"])
        self.step, self.validated = training["step"], training["validated"]
        self.best = None if training["best"] is None else Best(**training["best"])

    def _steps(self, bar: tqdm[Any], stop: StopRequest) -> int | None:
        """Train until the end or a signal, and return that."""
        config = self.config.training
        speed = Speed(config.batch)
        batches = self._batches()
        for step in range(self.step + 1, config.steps + 1):
            with speed.measured():
                rate = learning_rate(step, config.steps, self.config.optimizer)
                set_learning_rate(self.optimizer, rate)
                batch = next(batches)
                try:
                    result = self.training(batch, step)
                except NotFiniteError as error:
                    raise self._failed(batch, step, rate, error.result) from None
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    raise no_memory(config, batch, step, self.world, self.config.out / LATEST) from error
            self.step = step
            self._tell(bar, result, rate, speed)
            signal = self._signal(stop)
            due = self._validation_is_due()
            if due or step % config.save_every == 0 or step == config.steps or signal is not None:
                self._save(LATEST)
            if signal is None and due:
                # saved already, so that a run killed while it validates loses no step
                signal = self._validate(stop)
            if signal is not None:
                return signal
        return None

    def _batches(self) -> Iterator[Batch]:
        data, config = self.config.data, self.config.training
        return training_batches(
            self.train_set,
            crop=data.crop,
            scales=data.scales,
            flip=data.flip,
            scale_step=data.scale_step,
            max_class_share=data.max_class_share,
            distort_colours=data.distort_colours,
            batch=config.batch,
            seed=config.seed,
            start=self.step,
            rank=self.world.rank,
            world_size=self.world.size,
            workers=data.workers,
        )

    def _validation_is_due(self) -> bool:
        every, last = self.config.training.validate_every, self.step == self.config.training.steps
        return every > 0 and self.validated < self.step and (self.step % every == 0 or last)

    def _validate(self, stop: StopRequest) -> int | None:
        """Judge the network as it is, and keep it if it is the best. Returns the signal that ended this, if any."""
        config = self.config
        self.world.share_buffers(self.network)
        try:
            scores = evaluate(
                self.network,
                self.val_set,
                **config.evaluation.model_dump(),
                workers=config.data.workers,
                precision=config.training.precision,
                channels_last=config.training.channels_last,
                stop=lambda: stop.signal is not None,
            )
        except Stopped:
            return self._signal(stop)
        self.validated = self.step
        is_best = scores.mean_iou > (self.best.mean_iou if self.best else -1)
        if is_best:
            self.best = Best(self.step, scores.mean_iou)
            self._save(BEST)
        if self.log is not None:
            self.log.scores(self.step, scores)
            self.log.pictures(self.step, judged_pictures(self.network, self.val_set, config.training.pictures))
            tqdm.write(f"step {self.step}: mIoU {scores.mean_iou:.4f}{' (best)' if is_best else ''}")
        self._save(LATEST)
        return self._signal(stop)

    def _save(self, name: str) -> None:
        """Write a checkpoint in the main process; the others wait."""
        self.world.share_buffers(self.network)
        training = {
            "step": self.step,
            "validated": self.validated,
            "best": None if self.best is None else asdict(self.best),
            "pictures": fingerprint(self.train_set),
            "config": self.config.plain(),
        }
        if name == LATEST:
            training |= {"optimizer": self.optimizer.state_dict(), "scaler": self.training.scaler.state_dict()}
        data = self.config.plain()["data"]
        classes = self.train_set.classes
        # the colours of the classes, for predictions that know no data set
        palette = self.train_set.palette[: len(classes)].tolist()
        opened = {"kind": data["kind"], "root": data["root"], "split": data["val_split"], "options": data["options"]}

        def write() -> None:
            if self.log is not None:
                self.log.make_durable()
            with replacing(self.config.out / name) as part:
                save_network(part, self.network, classes=classes, palette=palette, data=opened, training=training)

        self.world.on_main(write)

    def _failed(self, batch: Batch, step: int, rate: float, result: StepResult) -> FloatingPointError:
        """Writes the report of a step that failed in all processes."""
        report = failure_report(self.training, batch, step, rate, result)
        path = self.config.out / FAILURE
        self.world.on_main(lambda: write_report(path, report))
        return FloatingPointError(f"{summary(report)}\nsee {path}")

    def _signal(self, stop: StopRequest) -> int | None:
        """The signal that some process got, the same in all."""
        signals = self.world.gather(stop.signal) if self.world.any(stop.signal is not None) else []
        return next((signal for signal in signals if signal is not None), None)

    def _tell(self, bar: tqdm[Any], result: StepResult, rate: float, speed: Speed) -> None:
        if self.log is None:
            return
        self.log.step(self.step, result, rate)
        bar.set_postfix_str(f"loss {result.loss:.4f}, lr {rate:.2e}, {speed.images:.1f} images/s", refresh=False)
        bar.update()
        if self.step % self.config.training.log_every == 0:
            self.log.scalars(
                self.step,
                {
                    "loss": result.loss,
                    "auxiliary_loss": result.auxiliary_loss,
                    "lr": rate,
                    "gradient_norm": result.gradient_norm,
                    "images_per_second": speed.images,
                    "memory_gib": memory(self.world.device),
                },
            )
            speed.restart()

    @contextmanager
    def _prepared_out(self) -> Iterator[None]:
        """`out` for this run alone, which goes on from what is there and begins to write."""
        out, folder = self.config.out, Folder(self.config.out)

        def take() -> None:
            folder.take()
            # once more: the run that had the folder may have left something
            check_out(out, resume=self.resume)

        def prepare() -> None:
            remove_parts(out)
            with replacing(out / "config.yaml") as part:
                part.write_text(yaml.safe_dump(self.config.plain(), sort_keys=False), encoding="utf-8")

        try:
            self.world.on_main(take)
            if self.resume:
                self._restore()
            self.world.on_main(prepare)
            yield
        finally:
            folder.leave()

    @contextmanager
    def _open_log(self) -> Iterator[Log | None]:
        """The log, in the main process only."""
        if not self.world.is_main:
            yield None
            return
        with closing(Log(self.config.out, self.train_set.classes, step=self.step, validated=self.validated)) as log:
            yield log

    def _bar(self) -> tqdm[Any]:
        steps = self.config.training.steps
        return tqdm(total=steps, initial=self.step, desc="training", unit="step", disable=not self.world.is_main)


def _check_share(config: Config, place: World) -> None:
    training = config.training
    if training.batch % (place.size * training.accumulate):
        raise ValueError(
            f"training.batch is {training.batch}: expected a multiple of {place.size * training.accumulate}, the "
            f"{place.size} processes times training.accumulate = {training.accumulate}"
        )
