"""One run on one or several processes: who am I, what do all agree on."""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
from torch import distributed as dist
from torch import nn

from .synchronised_norm import SynchronisedBatchNorm2d

Value = TypeVar("Value")

UNTIL_ALL_ARE_DONE = timedelta(days=7)
"""Timeout for processes that work on shares of their own for hours, and meet at the end."""


@dataclass(frozen=True)
class World:
    """This process among all of a run: its `rank` of `size`, its device, and the group of all (None for one alone)."""

    rank: int
    size: int
    device: torch.device
    group: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of `values` over all processes, in place."""
        if self.group is not None:
            dist.all_reduce(values, group=self.group)
        return values

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process; all get the same answer."""
        # on the CPU, where no kernel has to be waited for
        return bool(self.total(torch.tensor(int(flag))).item())

    def gather(self, value: Value) -> list[Value]:
        """`value` of every process in the order of ranks."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def on_main(self, action: Callable[[], Any]) -> None:
        """Do `action` in the main process while the others wait.

        What it raises goes on there, and the others stop with an OSError.
        """
        error: Exception | None = None
        if self.is_main:
            try:
                action()
            except Exception as raised:
                error = raised
        if self.any(error is not None):
            raise error or OSError("stopped, because process 0 failed; its message says why")

    def norm_layer(self, *, synchronised: bool) -> Callable[[int], nn.Module]:
        """What makes the norms of a network: batch norm, over the pictures of all processes if asked."""
        if self.group is None or not synchronised:
            return nn.BatchNorm2d
        if self.device.type == "cuda":
            return partial(nn.SyncBatchNorm, process_group=self.group)
        return partial(SynchronisedBatchNorm2d, group=self.group)

    def share_buffers(self, network: nn.Module) -> None:
        """Give every process the buffers of the main one; norms that are not synchronised have their own."""
        if self.group is not None:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0, group=self.group)


@contextmanager
def world(device: str | None = None, *, timeout: timedelta | None = None) -> Iterator[World]:
    """The processes that torchrun started, or this one alone.

    Args:
        device: "cpu", "cuda" or "cuda:1"; None takes CUDA where there is one. With torchrun every process takes the GPU
            of its local rank.
        timeout: how long one process waits for another before it fails; None for PyTorch's default, some minutes.

    Raises:
        ValueError: no such device here, or one GPU for several processes.
        OSError: at the start or inside the block, another process is gone.
    """
    local_rank, size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if device is not None and ":" in device and size > 1:
        raise ValueError(f"device is {device!r} for {size} processes: expected 'cuda', the GPU of each local rank")
    # of the last process here, so that all of them see a mistake
    find_device(device, int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1)
    place = find_device(device, local_rank)
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield World(0, 1, place)
        return
    # imported later, as by DDP, it would keep the group until the interpreter ends, when gloo's threads no longer get
    # the lock that they need to end
    importlib.import_module("torch.distributed.nn.functional")
    try:
        if place.type == "cuda":
            torch.cuda.set_device(place)
            # what the processes agree on is small and lies on the CPU
            dist.init_process_group("cpu:gloo,cuda:nccl", timeout=timeout, device_id=place)
        else:
            dist.init_process_group("gloo", timeout=timeout)
        yield World(dist.get_rank(), dist.get_world_size(), place, dist.group.WORLD)
    except RuntimeError as error:
        if "closed by peer" in str(error) or "reset by peer" in str(error):
            raise OSError("stopped, because another process is gone; its message says why") from error
        raise
    # what the block left goes first: a group ends with its last owner, and some owners end it holding the lock
    gc.collect()
    # not after an error: this would wait for processes that still wait for this one
    dist.destroy_process_group()


def find_device(name: str | None, local_rank: int = 0) -> torch.device:
    """The device called `name`, as in `world`; "cuda" is GPU number `local_rank`. ValueError if it is not there."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {name!r}: expected cpu, cuda or cuda:1")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", local_rank)
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        several = f" for {local_rank + 1} processes" if local_rank else ""
        raise ValueError(f"device is {name!r}{several}: expected a device that is there, PyTorch sees {count} GPUs")
    return device
