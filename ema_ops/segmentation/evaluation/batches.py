"""Batches of pictures that came in any size, and their way to the device."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")

WAITING_BATCHES = 8
"""How many batches of pictures may wait for others of their size."""


def equal_sizes(items: Iterable[Item], batch: int, size: Callable[[Item], Hashable]) -> Iterator[list[Item]]:
    """`items` in lists of at most `batch` whose `size` is the same; the lists depend on the order of the items only.

    Pictures are never padded to the size of others: EM attention looks at all positions, so padding changes results.
    A picture waits for others of its size until `WAITING_BATCHES` batches wait; then the oldest group goes.
    """
    waiting: dict[Hashable, list[Item]] = {}
    count = 0
    for item in items:
        key = size(item)
        group = waiting.setdefault(key, [])
        group.append(item)
        count += 1
        if len(group) == batch:
            yield waiting.pop(key)
            count -= batch
        elif count >= WAITING_BATCHES * batch:
            group = waiting.pop(next(iter(waiting)))
            yield group
            count -= len(group)
    yield from waiting.values()


def to_device(tensors: list[Tensor], device: torch.device) -> Tensor:
    """`tensors` of one shape as one batch on `device`; to a GPU through pinned memory, without waiting for the copy."""
    pinned = device.type == "cuda"
    stacked = torch.empty((len(tensors), *tensors[0].shape), dtype=tensors[0].dtype, pin_memory=pinned)
    torch.stack(tensors, out=stacked)
    return stacked.to(device, non_blocking=pinned)
