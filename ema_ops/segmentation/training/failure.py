"""What to say of a step that failed: where a loss or gradient that is not finite comes from, or what had no room."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import TrainingConfig
from ..data import IGNORE, Batch
from .distributed import World
from .files import replacing
from .step import StepResult, TrainingStep, seed_dropout

_MOST = 10
"""So many of the largest gradients are named."""


def failure_report(training: TrainingStep, batch: Batch, step: int, rate: float, result: StepResult) -> dict[str, Any]:
    """What is known about a failed step, in words and numbers; every process must call it, with its share of the batch.

    The forward pass is done once more, without moving running statistics, to find the first module whose output is
    not finite. Gradients are those that the step left.
    """
    network = training.network
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    norms = {name: torch.linalg.vector_norm(gradient).item() for name, gradient in gradients.items()}
    largest = sorted(norms, key=lambda name: norms[name] if math.isfinite(norms[name]) else math.inf, reverse=True)
    processes = training.world.gather({"rank": training.world.rank, **_forward_once_more(training, batch, step)})
    return {
        "step": step,
        "learning_rate": rate,
        "loss": result.loss,
        "auxiliary_loss": result.auxiliary_loss,
        "gradient_norm": result.gradient_norm,
        "processes": processes,
        "nonfinite_parameters": [name for name, p in network.named_parameters() if not _finite(p)],
        "nonfinite_gradients": [name for name in norms if not math.isfinite(norms[name])],
        "largest_gradients": {name: norms[name] for name in largest[:_MOST]},
    }


def write_report(path: Path, report: dict[str, Any]) -> None:
    """`report` as JSON, which has no NaN: such numbers become words. Raises OSError naming the file."""
    with replacing(path) as part:
        part.write_text(json.dumps(_in_json(report), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def summary(report: dict[str, Any]) -> str:
    """The report in one or two lines."""
    if math.isfinite(report["loss"]):
        what = f"gradient norm {report['gradient_norm']} with loss {report['loss']:.4g}"
    else:
        what = f"loss {report['loss']}"
    lines = [f"step {report['step']}: {what}, learning rate {report['learning_rate']:.3g}; no parameter was moved"]
    for process in report["processes"]:
        where = process["first_nonfinite_output"]
        if where is None:
            found = "all outputs are finite"
        else:
            found = f"the first output that is not finite is that of {where['module']} ({where['type']})"
            found += ", whose inputs are finite" if where["inputs_finite"] else ""
        bad = [picture["name"] for picture in process["pictures"] if not math.isfinite(picture["loss"])]
        names = ", ".join(bad or [picture["name"] for picture in process["pictures"]])
        lines.append(f"process {process['rank']}: {found}; pictures: {names}")
    if report["nonfinite_parameters"]:
        lines.append(f"parameters that are not finite: {', '.join(report['nonfinite_parameters'])}")
    return "\n".join(lines)


def no_memory(config: TrainingConfig, batch: Batch, step: int, world: World, latest: Path) -> OSError:
    """The error of a `step` that the memory of this process's device is too small for; `latest` is the checkpoint."""
    height, width = batch.masks.shape[-2:]
    together = len(batch.masks) // config.accumulate
    kept = f"{latest} is kept" if latest.exists() else "there is no checkpoint yet"
    return OSError(
        errno.ENOMEM,
        f"step {step}: no memory on {world.device} for {together} crops of {height} x {width} at a time in "
        f"{config.precision} (training.batch={config.batch}, accumulate={config.accumulate}, processes: {world.size}): "
        f"expected a smaller training.batch, a larger training.accumulate, {_cheaper(config)}or a smaller data.crop; "
        f"{kept}",
    )


def _cheaper(config: TrainingConfig) -> str:
    return "training.precision=bfloat16, " if config.precision == "float32" else ""


@torch.no_grad()
def _forward_once_more(training: TrainingStep, batch: Batch, step: int) -> dict[str, Any]:
    seed_dropout(training.config.seed, step, training.world.rank)
    losses: list[float] = []
    parts: list[dict[str, float | None]] = []
    finite: list[bool] = []
    valid = training.count_labels(batch.masks)
    with _kept_buffers(training.network), _first_nonfinite(training.network) as found:
        for images, masks in training.parts(batch):
            with training.autocast():
                logits, auxiliary = training.network(images, return_auxiliary=True)
            sums = _picture_sums(logits, masks)
            labels = (masks != IGNORE).flatten(1).sum(1)
            losses += (sums / labels.clamp_min(1)).tolist()
            finite += [_finite(image) for image in images]
            other = None if auxiliary is None else _picture_sums(auxiliary, masks).sum().item() / valid
            parts.append({"loss": sums.sum().item() / valid, "auxiliary_loss": other})
    pictures = [
        {"name": name, "loss": loss, "image_finite": ok}
        for name, loss, ok in zip(batch.names, losses, finite, strict=True)
    ]
    return {"parts": parts, "pictures": pictures, "first_nonfinite_output": found[0] if found else None}


def _picture_sums(logits: Tensor, masks: Tensor) -> Tensor:
    return F.cross_entropy(logits, masks, ignore_index=IGNORE, reduction="none").flatten(1).sum(1)


@contextmanager
def _first_nonfinite(network: nn.Module) -> Iterator[list[dict[str, Any]]]:
    """A list that gets the first module inside the block whose output is not finite."""
    found: list[dict[str, Any]] = []

    def watch(name: str, module: nn.Module) -> Any:
        def look(_: nn.Module, inputs: Any, output: Any) -> None:
            # a module ends after those inside it, so the first one is the innermost
            if not found and not _finite(output):
                kind = type(module).__name__
                found.append({"module": name or "the network", "type": kind, "inputs_finite": _finite(inputs)})

        return module.register_forward_hook(look)

    handles = [watch(name, module) for name, module in network.named_modules()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _kept_buffers(network: nn.Module) -> Iterator[None]:
    """Running statistics and bases are afterwards what they were."""
    before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)


def _finite(value: Any) -> bool:
    """Whether all numbers of a tensor, or of all tensors in a tuple, are finite."""
    if isinstance(value, Tensor):
        return bool(value.isfinite().all())
    return all(map(_finite, value)) if isinstance(value, (tuple, list)) else True


def _in_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _in_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_in_json(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
