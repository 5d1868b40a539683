"""Calls that together reach every path of the kernels, judged against float64. A program too, so that a core may abort.

`emulation.run("kernel_cases.py", core, *names)` prints the digest of the results of each.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import emulation
import torch
from judge import assert_close_to_reference
from torch import Tensor

import ema_ops
from ema_ops import backends, reference
from ema_ops.backends import cuda

fp32, bf16, fp16 = torch.float32, torch.bfloat16, torch.float16


class Case(NamedTuple):
    """A call of `ema_ops.em_<call>` with its gradients, on a device with few multiprocessors."""

    sizes: tuple[int, int, int, int]  # B, H, N, C
    num_bases: int
    dtype: torch.dtype
    call: str = "attention"
    order: str = "BNC"
    offset: int = 0  # elements between 16-byte alignment and the features
    weighted: bool = False
    value_channels: int = 0
    shared_memory: int = 227 << 10
    multiprocessors: int = 2
    tf32: bool = False
    options: dict[str, Any] = {}  # noqa: RUF012


CASES = {
    "fused": Case((2, 1, 150, 96), 64, bf16, weighted=True, options={"num_iters": 2}),
    "fused fp16 image": Case(
        (1, 2, 136, 130), 20, fp16, order="BCN", weighted=True, options={"num_iters": 3, "grad_iters": 2}
    ),
    "fused, rows not resident": Case((1, 1, 130, 512), 64, bf16, options={"num_iters": 1}),
    "odd rows of an image": Case((1, 1, 65, 72), 33, bf16, order="BCN", weighted=True, options={"num_iters": 2}),
    "odd rows": Case((1, 1, 70, 67), 17, fp16, options={"num_iters": 2}),
    "unaligned": Case((1, 1, 66, 64), 9, bf16, offset=3, options={"num_iters": 2}),
    "many bases": Case((1, 1, 140, 70), 200, bf16, weighted=True, options={"num_iters": 2}),
    "many bases fp16 image": Case((2, 1, 70, 136), 129, fp16, order="BCN", weighted=True, options={"num_iters": 1}),
    "many channels": Case((1, 1, 66, 600), 12, fp16, options={"num_iters": 1, "scale": 0.2}),
    "little shared memory": Case(
        (1, 1, 140, 512), 64, bf16, shared_memory=99 << 10, options={"num_iters": 2, "scale": 0.3}
    ),
    "many images": Case((8, 4, 5, 70), 9, bf16, options={"num_iters": 2}),
    "many images float32": Case((33, 1, 3, 35), 70, fp32, order="BCN", options={"num_iters": 2}),
    "float32": Case((2, 1, 140, 50), 10, fp32, weighted=True, options={"num_iters": 2}),
    "float32 image": Case(
        (1, 1, 131, 33), 70, fp32, order="BCN", options={"num_iters": 2, "eps_mode": "max", "eps": 0.2}
    ),
    "float32 unaligned": Case((1, 1, 67, 64), 8, fp32, offset=1, options={"num_iters": 1}),
    "tf32": Case((1, 1, 140, 50), 10, fp32, tf32=True, weighted=True, options={"num_iters": 2}),
    "tf32 image": Case((1, 1, 131, 33), 70, fp32, tf32=True, order="BCN", options={"num_iters": 2}),
    "step": Case((1, 2, 130, 72), 24, bf16, "step", weighted=True, options={"scale": 1.5}),
    "step image float32": Case((2, 1, 70, 20), 6, fp32, "step", order="BCN"),
    "step, many bases": Case((1, 1, 70, 64), 90, fp16, "step"),
    "reconstruct": Case((1, 2, 70, 72), 24, bf16, "reconstruct", value_channels=130),
    "reconstruct image": Case((1, 1, 71, 40), 80, fp16, "reconstruct", order="BCN", value_channels=33),
    "reconstruct float32": Case((2, 1, 70, 20), 6, fp32, "reconstruct", value_channels=20),
}  # fmt: skip


class EmulatedBackend(cuda.CudaBackend):
    """Serves CPU tensors with the core built for the processor and the plans of some device."""

    def __init__(self, core, multiprocessors, shared_memory):
        super().__init__(core)
        self.properties = 9, 0, multiprocessors, shared_memory

    def unavailable(self):
        return None

    def device_refusal(self, device):
        return None if device.type == "cpu" else f"device is {device}: expected a CPU"

    def device_properties(self, device):
        return self.core.Device(*self.properties)

    @contextmanager
    def current(self, device):
        yield 0, 0


def run_case(core: Any, case: Case) -> str:
    """Judge all results and gradients of `case`; returns their digest."""
    inputs, weight = make_inputs(case)
    options = {**case.options, **({} if weight is None else {"weight": weight})}
    grads: list[Tensor] = []
    backend = EmulatedBackend(core, case.multiprocessors, case.shared_memory)
    tf32 = mock.patch.object(cuda, "tf32_allowed", return_value=case.tf32)
    with mock.patch.object(cuda, "BACKEND", backend), tf32, poisoned():
        backends.load.cache_clear()
        try:
            served = {**options, "backend": "cuda"}
            ours = results(getattr(ema_ops, f"em_{case.call}"), inputs, grads, None, served)
        finally:
            backends.load.cache_clear()
    formula = FORMULAS[case.call]
    exact = results(formula, inputs, grads, torch.float64, options)
    # tf32 has as many bits as float16
    plain = results(formula, inputs, grads, fp16 if case.tf32 else case.dtype, options)
    for name, actual in ours.items():
        if actual is None:
            assert exact[name] is None, name
            continue
        factor = 3.0 if name.startswith("gradient") else 2.0
        assert_close_to_reference(actual, exact[name], plain[name], factor=factor, name=name)
    digest = hashlib.sha256()
    for actual in ours.values():
        if actual is not None:
            rows = actual.clone(memory_format=torch.contiguous_format)
            digest.update(rows.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def make_inputs(case: Case) -> tuple[dict[str, Tensor], Tensor | None]:
    """The tensors that want a gradient, and the weight."""
    generator = torch.Generator().manual_seed(0)
    batch, heads, positions, channels = case.sizes
    memory = torch.randn(batch * heads * positions * channels + 16, generator=generator).to(case.dtype)
    start = -memory.data_ptr() // memory.element_size() % (16 // memory.element_size()) + case.offset
    x = memory[start : start + batch * heads * positions * channels]
    if case.order == "BCN":
        x = x.view(batch, heads, channels, positions).transpose(2, 3)
    else:
        x = x.view(batch, heads, positions, channels)
    bases = torch.nn.functional.normalize(torch.randn(heads, channels, case.num_bases, generator=generator), dim=-2)
    bias = torch.randn(batch, heads, case.num_bases, generator=generator)
    inputs = {
        "attention": {"bases": bases},
        "step": {"bases": bases, "logit_bias": bias},
        "reconstruct": {
            "logit_bases": bases,
            "value_bases": torch.randn(heads, case.value_channels, case.num_bases, generator=generator),
            "logit_bias": bias,
        },
    }[case.call]
    weight = torch.rand(batch, heads, positions, generator=generator) if case.weighted else None
    return {"x": x, **inputs}, weight


def results(
    function: Callable, inputs: dict[str, Tensor], grads: list[Tensor], dtype: torch.dtype | None, options: dict
) -> dict[str, Tensor | None]:
    """Results and gradients with everything in `dtype` (None: as given); fills `grads` where it is empty."""
    leaves = {
        name: (t.detach() if dtype is None else t.detach().to(dtype)).requires_grad_() for name, t in inputs.items()
    }
    if dtype is not None:
        options = {name: t.to(dtype) if torch.is_tensor(t) else t for name, t in options.items()}
    out = function(**leaves, **options)
    out = (out,) if torch.is_tensor(out) else out
    if not grads:
        generator = torch.Generator().manual_seed(1)
        grads += [torch.randn(o.shape, generator=generator).to(o.dtype) for o in out]
    loss = sum((o * g.to(o.dtype)).sum() for o, g in zip(out, grads, strict=True))
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {
        **{f"result {i}": o.detach() for i, o in enumerate(out)},
        **{f"gradient of {name}": g for name, g in zip(leaves, gradients, strict=True)},
    }


def step(x, bases, *, logit_bias, weight=None, scale=1.0):
    """The formula of `ema_ops.em_step`."""
    return reference.weighted_sums(x, reference.e_step(x, bases, scale, logit_bias), weight)


def reconstruct(x, logit_bases, value_bases, *, logit_bias, scale=1.0):
    """The formula of `ema_ops.em_reconstruct`."""
    return reference.e_step(x, logit_bases, scale, logit_bias) @ value_bases.transpose(-1, -2)


FORMULAS = {"attention": reference.em_attention, "step": step, "reconstruct": reconstruct}


@contextmanager
def poisoned():
    """Memory that nobody wrote reads as NaN."""

    def poisoning(allocate):
        def allocate_poisoned(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            tensor.untyped_storage().fill_(255)
            return tensor

        return allocate_poisoned

    names = ("empty", "empty_like", "empty_strided")
    with (
        mock.patch.multiple(torch, **{name: poisoning(getattr(torch, name)) for name in names}),
        mock.patch.object(torch.Tensor, "new_empty_strided", poisoning(torch.Tensor.new_empty_strided)),
    ):
        yield


if __name__ == "__main__":
    torch.set_num_threads(1)
    module = emulation.load_module(Path(sys.argv[1]))
    for chosen in sys.argv[2:] or CASES:
        print(chosen, run_case(module, CASES[chosen]), sep="\t", flush=True)
