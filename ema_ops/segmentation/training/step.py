"""One step of training: the loss of the whole batch, wherever its pictures are, and the move of the parameters."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from ..config import TrainingConfig
from ..data import IGNORE, Batch
from ..evaluation.inference import PRECISIONS
from .distributed import World

_SENDS_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)
"""Name of DistributedDataParallel's option; torch 2.13 warns of the old one."""


@dataclass(frozen=True)
class StepResult:
    """What a step found, over the pictures of all processes and all accumulated parts.

    `loss` is what was differentiated, the auxiliary loss included with its weight; `auxiliary_loss` is None without an
    auxiliary classifier. Where `gradient_norm` is not finite, scaled float16 gradients overflowed, and the parameters
    stayed as they were.
    """

    loss: float
    auxiliary_loss: float | None
    gradient_norm: float


class NotFiniteError(ArithmeticError):
    """A loss or gradient that is not finite, told before the parameters moved."""

    def __init__(self, result: StepResult) -> None:
        super().__init__("the loss or its gradient is not finite")
        self.result = result


class TrainingStep:
    """Forward, backward and update for batch after batch.

    The loss is the cross entropy averaged over all pixels with a label, of all processes and all accumulated parts
    together, so that it does not matter over how many of them a batch is spread (norms without synchronisation and
    dropout excepted: they see one part of one process). A batch without any label has loss 0.

    Args:
        network: an `EMANet` on the device of `world`; its own parameters move.
        optimizer: over its parameters.
        world: the processes that share each batch.
        config: precision, accumulation, compilation, weight of the auxiliary loss, seed.
    """

    def __init__(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, world: World, config: TrainingConfig
    ) -> None:
        check_precision(config.precision, world.device)
        self.network, self.optimizer, self.world, self.config = network, optimizer, world, config
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=config.precision == "float16")
        self._parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self._parallel = _parallel(network, world)
        self._forward: Callable[..., Any] = torch.compile(self._parallel) if config.compile else self._parallel

    def __call__(self, batch: Batch, step: int) -> StepResult:
        """Train on this process's share of batch number `step`.

        Raises NotFiniteError, in all processes, before the optimizer has moved anything.
        """
        seed_dropout(self.config.seed, step, self.world.rank)
        self.optimizer.zero_grad(set_to_none=True)
        valid = self.count_labels(batch.masks)
        losses = torch.zeros(2, dtype=torch.float64, device=self.world.device)
        has_auxiliary = False
        parts = list(self.parts(batch))
        for number, (images, masks) in enumerate(parts, start=1):
            with self._summing_gradients(done=number == len(parts)), self.autocast():
                loss, auxiliary = pixel_losses(self._forward, images, masks, valid)
                has_auxiliary = auxiliary is not None
                if auxiliary is not None:
                    losses[1] += auxiliary.detach()
                    loss = loss + self.config.auxiliary_weight * auxiliary
                losses[0] += loss.detach()
            # gradients are averaged over the processes, but the loss is a sum over them
            self.scaler.scale(loss * self.world.size).backward()
        self.scaler.unscale_(self.optimizer)
        norm = get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        # one wait for the device, for everything that is read
        total, auxiliary_total, norm = torch.cat([self.world.total(losses), norm.reshape(1).double()]).tolist()
        result = StepResult(total, auxiliary_total if has_auxiliary else None, norm)
        # float16 gradients may overflow as long as their scale can be halved: the scaler then leaves the step out
        if not math.isfinite(total) or not (math.isfinite(norm) or self.scaler.get_scale() > 1):
            raise NotFiniteError(result)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return result

    def parts(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """The accumulated parts of `batch` on the device, images in the dtype and memory order of the network."""
        dtype = self._parameters[0].dtype
        order = torch.channels_last if self.config.channels_last else torch.contiguous_format
        size = len(batch.images) // self.config.accumulate
        for images, masks in zip(batch.images.split(size), batch.masks.split(size), strict=True):
            images = images.to(self.world.device, dtype, non_blocking=True).contiguous(memory_format=order)
            yield images, masks.to(self.world.device, non_blocking=True)

    def count_labels(self, masks: Tensor) -> int:
        """Pixels with a label in the `masks` of all processes; 1 if there is none, as a divisor."""
        return max(1, int(self.world.total((masks != IGNORE).sum()).item()))

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the network's forward."""
        enabled = self.config.precision != "float32"
        return torch.autocast(self.world.device.type, PRECISIONS[self.config.precision], enabled=enabled)

    def _summing_gradients(self, *, done: bool) -> AbstractContextManager[Any]:
        """Gradients go over the processes once, with the last part."""
        if done or not isinstance(self._parallel, DistributedDataParallel):
            return nullcontext()
        return self._parallel.no_sync()


def pixel_losses(
    network: Callable[..., Any], images: Tensor, masks: Tensor, valid: int
) -> tuple[Tensor, Tensor | None]:
    """The share of `images` [b, 3, h, w] in the cross entropy averaged over `valid` pixels.

    Returns the loss of the logits and of the auxiliary ones (None without), both without weight.
    """
    logits, auxiliary = network(images, return_auxiliary=True)
    loss = F.cross_entropy(logits, masks, ignore_index=IGNORE, reduction="sum") / valid
    if auxiliary is None:
        return loss, None
    return loss, F.cross_entropy(auxiliary, masks, ignore_index=IGNORE, reduction="sum") / valid


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Make all random numbers of `step` in process `rank` depend on these three only, so nothing needs to be saved."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1)))


def check_precision(precision: str, device: torch.device) -> None:
    """ValueError when `device` cannot train in `precision`."""
    if precision == "float16" and device.type != "cuda":
        raise ValueError(
            f"training.precision is 'float16' on {device.type}: expected 'float32' or 'bfloat16' there, "
            "as scaled float16 gradients need CUDA"
        )
    if precision == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ValueError(f"training.precision is 'bfloat16': expected 'float16' or 'float32' on {device}")


def _parallel(network: nn.Module, world: World) -> nn.Module:
    if world.group is None:
        return network
    # they move in every process alike, as norms and bases are averaged over all
    keep_buffers: dict[str, Any] = {_SENDS_BUFFERS: False}
    return DistributedDataParallel(
        network,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        process_group=world.group,
        gradient_as_bucket_view=True,
        **keep_buffers,
    )
