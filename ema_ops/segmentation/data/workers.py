"""Work done ahead by processes, in order, with errors that come through as they were."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from .errors import DataError

Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True)
class _Failure:
    error: Exception


class _Tasks(Dataset[Any], Generic[Key, Value]):
    """`task(key)` as an item; an error of a file is handed over whole, as DataLoader would rewrite its message."""

    def __init__(self, task: Callable[[Key], Value]):
        self.task = task

    def __getitem__(self, key: Key) -> Value | _Failure:
        try:
            return self.task(key)
        except (OSError, DataError) as error:
            return _Failure(error)


def in_order(
    task: Callable[[Key], Value], keys: Iterable[Key], *, workers: int, pinned: bool = False
) -> Iterator[Value]:
    """`task(key)` for each of `keys`, which may be endless, in their order; done ahead by `workers` processes, if any.

    There are no more of them than cores. With `pinned` the tensors lie in pinned memory where there is a GPU. Raises
    what `task` raises.
    """
    loader = DataLoader(
        _Tasks(task),
        sampler=keys,
        batch_size=None,
        num_workers=min(workers, _cores()),
        collate_fn=_as_it_is,
        pin_memory=pinned and torch.cuda.is_available(),
        # one of its own: the loader draws a seed for its workers, which must not move the global random state
        generator=torch.Generator(),
    )
    for result in loader:
        if isinstance(result, _Failure):
            raise result.error
        yield result


def check_workers(workers: int) -> None:
    """ValueError unless `workers` is a number of processes."""
    if workers < 0:
        raise ValueError(f"workers is {workers}: expected 0 or more")


def _cores() -> int:
    """Cores that this process may use, where the system tells it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _as_it_is(value: Value) -> Value:
    return value
