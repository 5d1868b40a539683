"""Training and judging one network of the demo; the same for all four."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassJaccardIndex

from ..segmentation.data import IGNORE, VOCSegmentation
from ..segmentation.data.generated.drawing import CLASSES, FIRST_MARKED
from .network import DemoNetwork

LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-4


@dataclass(frozen=True)
class Budget:
    """What every network gets: pictures in the set, steps, batch size, and how often it is judged on the way."""

    train: int = 2000
    val: int = 200
    steps: int = 1000
    batch: int = 8
    judgements: int = 8


@dataclass
class Result:
    """One trained network: loss of every step, mIoU on the way, and the final IoU of every class."""

    name: str
    network: DemoNetwork
    losses: list[float] = field(default_factory=list)
    curve: list[tuple[int, float]] = field(default_factory=list)
    class_iou: list[float] = field(default_factory=list)

    @property
    def mean_iou(self) -> float:
        """mIoU over all classes."""
        return sum(self.class_iou) / len(self.class_iou)

    @property
    def marked_iou(self) -> float:
        """mIoU over the classes that only the cue tells apart."""
        marked = self.class_iou[FIRST_MARKED:]
        return sum(marked) / len(marked)


def train(
    name: str,
    train_set: VOCSegmentation,
    val_set: VOCSegmentation,
    budget: Budget,
    seed: int,
    progress: Callable[[str], object] = lambda _: None,
) -> Result:
    """Train the network with the context layer `name`; first weights and order of the data depend on `seed` only.

    `progress` is called after every step with a short text.
    """
    torch.manual_seed(seed)
    result = Result(name, DemoNetwork(name, len(CLASSES)))
    network = result.network
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=budget.steps)
    batches = _endless(train_set, budget.batch, seed)
    for step in range(1, budget.steps + 1):
        loss = training_step(network, optimizer, *next(batches))
        schedule.step()
        result.losses.append(loss)
        if step * budget.judgements // budget.steps > (step - 1) * budget.judgements // budget.steps:
            result.class_iou = evaluate(network, val_set)
            result.curve.append((step, result.mean_iou))
        progress(f"{name}: loss {loss:.3f}" + (f", mIoU {result.curve[-1][1]:.2f}" if result.curve else ""))
    return result


def training_step(network: DemoNetwork, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> float:
    """One step on `images` [B, 3, H, W] and `labels` [B, H, W]; returns the loss before it."""
    optimizer.zero_grad(set_to_none=True)
    loss = F.cross_entropy(network(images), labels, ignore_index=IGNORE)
    loss.backward()
    optimizer.step()
    return loss.item()


@torch.no_grad()
def evaluate(network: DemoNetwork, val_set: VOCSegmentation) -> list[float]:
    """Intersection over union of every class over the whole of `val_set`."""
    metric = MulticlassJaccardIndex(len(CLASSES), average="none", ignore_index=IGNORE)
    network.eval()
    for images, labels in DataLoader(val_set, batch_size=16):
        metric.update(network(images).argmax(dim=1), labels)
    network.train()
    return metric.compute().tolist()


def _endless(train_set: VOCSegmentation, batch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of shuffled data, round after round."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from DataLoader(train_set, batch_size=batch, shuffle=True, drop_last=True, generator=generator)
