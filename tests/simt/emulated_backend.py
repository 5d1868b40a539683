"""The "cuda" backend over the core built for the processor: real tensors, plans and kernels, no GPU."""

from __future__ import annotations

from contextlib import contextmanager

from ema_ops.backends.cuda import CudaBackend


class EmulatedBackend(CudaBackend):
    """Serves CPU tensors, with the plans of a device of the given kind."""

    def __init__(self, core, *, capability=(9, 0), multiprocessors=4, shared_memory=227 << 10):
        super().__init__(core)
        self.properties = (*capability, multiprocessors, shared_memory)

    def unavailable(self):
        return None

    def device_refusal(self, device):
        return None if device.type == "cpu" else f"device is {device}: expected a CPU"

    def device_properties(self, device):
        return self.core.Device(*self.properties)

    @contextmanager
    def current(self, device):
        yield 0, 0
