"""The "cuda" backend on the CPU: the core compiled by tests/simt, with the device properties of any GPU."""

from __future__ import annotations

from contextlib import contextmanager

import torch

from ema_ops.backends.cuda import CudaBackend

KIB = 1024
# compute capability, multiprocessors and bytes of shared memory of one block
DEVICES = {
    "8.0": (8, 0, 108, 163 * KIB),
    "8.6": (8, 6, 84, 99 * KIB),
    "9.0": (9, 0, 132, 227 * KIB),
    "10.0": (10, 0, 148, 227 * KIB),
    "12.0": (12, 0, 188, 99 * KIB),
}


class EmulatedBackend(CudaBackend):
    """Launches on the CPU what a GPU of `properties` would get; `change_plan`, if set, may change every plan."""

    properties = (9, 0, 6, 227 * KIB)
    change_plan = None

    def unavailable(self):
        return None

    def device_refusal(self, device):
        return None if device.type == "cpu" else f"device is {device}: the emulation wants cpu"

    def device_properties(self, device):
        return self.core.Device(*self.properties)

    def _plan(self, problem, tf32):
        described, plan = super()._plan(problem, tf32)
        if self.change_plan is not None:
            self.change_plan(plan)
        return described, plan

    @contextmanager
    def current(self, device):
        yield 0, 0


def poison(tensor: torch.Tensor) -> torch.Tensor:
    """Fill memory that nobody has written with NaN, bytes of any workspace included."""
    if tensor.is_floating_point():
        return tensor.fill_(float("nan"))
    return tensor.fill_(255) if tensor.dtype == torch.uint8 else tensor
