"""Whether the Triton kernels can serve a call, and the way to them."""

from __future__ import annotations

import importlib
import importlib.util
import os
from functools import cache

import torch

from ...problem import Problem
from ..base import Backend

MAX_CHANNELS = 1024
MAX_BASES = 256
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Triton's interpreter multiplies the raw bits of bfloat16
INTERPRETED_DTYPES = (torch.float32, torch.float16)


class TritonBackend(Backend):
    """See `Backend` for the shapes. The kernels are imported when the first call needs them."""

    name = "triton"

    def unavailable(self):
        if not installed():
            return "triton is not installed: pip install triton"
        if not interpreted() and not torch.cuda.is_available():
            return "no CUDA or ROCm device was found"
        return import_failure()

    def refuses(self, problem):
        if problem.dtype not in DTYPES:
            return f"dtype is {problem.dtype}: expected float32, bfloat16 or float16"
        if interpreted() and problem.dtype not in INTERPRETED_DTYPES:
            return f"dtype is {problem.dtype}, which Triton's interpreter gets wrong: expected float32 or float16"
        for name, value, limit in (
            ("C", problem.channels, MAX_CHANNELS),
            ("Cv", problem.value_channels, MAX_CHANNELS),
            ("K", problem.num_bases, MAX_BASES),
        ):
            if value > limit:
                return f"{name} is {value}: expected at most {limit}"
        return device_refusal(problem.device)

    def em_forward(self, problem, x, bases, weight):
        with on_device(problem):
            return _kernels("forward").em_forward(problem, x, bases, weight)

    def em_backward(self, problem, grad_y, grad_bases, x, weight, bases, path, mass, length, need_bases):
        with on_device(problem):
            return _kernels("backward").em_backward(
                problem, grad_y, grad_bases, x, weight, bases, path, mass, length, need_bases
            )

    def em_step(self, problem, x, bases, weight, logit_bias):
        with on_device(problem):
            return _kernels("forward").em_step(problem, x, bases, weight, logit_bias)

    def em_step_backward(self, problem, grad_sums, grad_mass, x, bases, weight, logit_bias):
        with on_device(problem):
            return _kernels("backward").em_step_backward(problem, grad_sums, grad_mass, x, bases, weight, logit_bias)

    def em_reconstruct(self, problem, x, logit_bases, value_bases, logit_bias):
        with on_device(problem):
            return _kernels("forward").em_reconstruct(problem, x, logit_bases, value_bases, logit_bias)

    def em_reconstruct_backward(self, problem, grad_y, x, logit_bases, value_bases, logit_bias):
        with on_device(problem):
            return _kernels("backward").em_reconstruct_backward(
                problem, grad_y, x, logit_bases, value_bases, logit_bias
            )

    def em_folded_forward(self, problem, x, bases, weight, conv_weight, conv_bias):
        with on_device(problem):
            return _kernels("folded").em_folded_forward(problem, x, bases, weight, conv_weight, conv_bias)

    def em_folded_backward(
        self, problem, grad_y, grad_bases, x, weight, conv_weight, conv_bias,
        bases, path, sums, mass, length, need_bases,
    ):  # fmt: skip
        with on_device(problem):
            return _kernels("folded").em_folded_backward(
                problem, grad_y, grad_bases, x, weight, conv_weight, conv_bias,
                bases, path, sums, mass, length, need_bases,
            )  # fmt: skip


BACKEND = TritonBackend()


@cache
def installed() -> bool:
    """Whether there is a package called triton; a mere folder of that name is none."""
    spec = importlib.util.find_spec("triton")
    return spec is not None and spec.origin is not None


@cache
def import_failure() -> str | None:
    """Why `import triton` does not work here, or None if it does."""
    try:
        importlib.import_module("triton")
    except Exception as error:  # a broken installation can raise anything; its text is the reason
        return f"import triton failed: {type(error).__name__}: {error}"
    return None


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def device_refusal(device: torch.device) -> str | None:
    """Why kernels cannot run on `device`, or None if they can."""
    if interpreted():
        return None if device.type == "cpu" else f"device is {device}: the interpreter (TRITON_INTERPRET=1) wants cpu"
    if device.type != "cuda":
        return f"device is {device}: expected a CUDA or ROCm device"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        return f"device {device} has compute capability {capability}: expected at least 8.0"
    return None


def on_device(problem: Problem) -> torch.cuda.device:
    """A context in which kernels are launched on the device of `problem`; does nothing for the CPU."""
    return torch.cuda.device(problem.device if problem.device.type == "cuda" else -1)


def _kernels(name: str):
    return importlib.import_module(f".{name}", __package__)
