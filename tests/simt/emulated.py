"""The "cuda" backend on the CPU: the core compiled by the shim, with the device properties of any GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from unittest import mock

import torch

from ema_ops import backends
from ema_ops.backends import cuda

KIB = 1024
# multiprocessors and bytes of shared memory of one block, by compute capability
DEVICES = {
    "8.0": (108, 163 * KIB),
    "8.6": (84, 99 * KIB),
    "9.0": (132, 227 * KIB),
    "10.0": (148, 227 * KIB),
    "12.0": (188, 99 * KIB),
}


class EmulatedBackend(cuda.CudaBackend):
    """Launches on the CPU what a GPU of `properties` would get; `change_plan`, if set, may change every plan."""

    change_plan = None

    def __init__(self, core, multiprocessors=6, shared_memory=227 * KIB, hopper=False, one_launch=False):
        super().__init__(core)
        self.properties = multiprocessors, shared_memory, hopper
        self.one_launch = one_launch

    def unavailable(self):
        return None

    def _device_refusal(self, device):
        return None if device.type == "cpu" else f"device is {device}: the emulation wants cpu"

    def make_plan(self, described, device):
        device = self.core.Device(*self.properties, overlap=True, one_launch=self.one_launch)
        plan = self.core.plan(described, device)
        if self.change_plan is not None:
            self.change_plan(plan)
        return plan

    def may_use_hopper(self):
        return self.properties[2] or self.one_launch

    def current(self, device):
        return nullcontext(), 0, 0


@contextmanager
def installed(backend: EmulatedBackend) -> Iterator[None]:
    """`backend` answers to "cuda", and memory that nobody has written reads as NaN, whatever is laid out in it."""

    def poisoned(allocate):
        def allocate_poisoned(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            tensor.untyped_storage().fill_(255)
            return tensor

        return allocate_poisoned

    names = ("empty", "empty_like", "empty_strided")
    with (
        mock.patch.object(cuda, "BACKEND", backend),
        mock.patch.multiple(torch, **{name: poisoned(getattr(torch, name)) for name in names}),
        mock.patch.object(torch.Tensor, "new_empty_strided", poisoned(torch.Tensor.new_empty_strided)),
    ):
        backends.load.cache_clear()
        try:
            yield
        finally:
            backends.load.cache_clear()
