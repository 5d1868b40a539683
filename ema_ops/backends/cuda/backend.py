"""The "cuda" backend. Its compiled core `ema_ops._C` knows no torch: it takes addresses, strides and a stream.

An address says nothing about the life of its tensor, so whatever is copied or converted first is a name of the method
that launches.
"""

from __future__ import annotations

import importlib
import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ...layout import empty_like_order
from ...problem import FLOAT8, Problem
from ..base import Backend
from ..convolution import convolution_gradient
from .architectures import architecture_refusal, parse_architecture
from .arguments import (
    address,
    aligned,
    as_bases,
    as_features,
    as_weight,
    can_be_boxed,
    dense,
    empty,
    in_float32,
    in_order,
)
from .hopper import HOPPER_PARTS, hopper_parts

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
MAX_BLOCKS = 2**31 - 1  # of one launch
MAX_POSITIONS = 2**31 - 256  # a position is counted in 32 bits, a little beyond the last one too
# entry points that may read the features more than once
LOOPS = ("em_forward", "em_attend", "em_backward", "em_folded_forward", "em_folded_backward", "em_unit")
ALREADY_CURRENT = nullcontext()
BUILD_RECORD = Path(__file__).parents[2] / "core_build.txt"  # what the installation said about the core


class CudaBackend(Backend):
    """See `Backend` for the shapes. `core` is the compiled module, or None and `missing` says why there is none."""

    name = "cuda"

    def __init__(self, core: ModuleType | None, missing: str = "") -> None:
        self.core: Any = core
        self.missing = missing
        # asked at every call, while the answers hold for the process
        self.planned = lru_cache(maxsize=1024)(self._plan)
        self.no_device = cache(self._no_device)
        self.device_refusal = cache(self._device_refusal)
        self.known_refusal = lru_cache(maxsize=1024)(self._refusal)

    def unavailable(self):
        return self.missing if self.core is None else self.no_device()

    def _no_device(self) -> str | None:
        """Why this machine has no device for the core, or None if it has."""
        if torch.version.hip is not None:
            return f"this PyTorch is built for ROCm {torch.version.hip}: expected one for CUDA"
        if not torch.cuda.is_available():
            return "no CUDA device was found"
        first = self.device_refusal(torch.device("cuda", 0))
        others = (torch.device("cuda", i) for i in range(1, torch.cuda.device_count()))
        return None if first is None or None in map(self.device_refusal, others) else first

    def refuses(self, problem):
        return self.known_refusal(problem)

    def _refusal(self, problem: Problem) -> str | None:
        if problem.dtype not in DTYPES:
            return f"dtype is {problem.dtype}: expected float32, bfloat16 or float16"
        for name, value, limit in (
            ("C", problem.channels, self.core.max_channels),
            ("Cv", problem.value_channels, self.core.max_channels),
            ("K", problem.num_bases, self.core.max_bases),
            ("N", problem.positions, MAX_POSITIONS),
        ):
            if value > limit:
                return f"{name} is {value}: expected at most {limit}"
        # no kernel has more blocks than there are tiles of 64 by 64 in the features, or 64 for an image
        tiles = (problem.positions // 64 + 1) * (max(problem.channels, problem.value_channels) // 64 + 1)
        if problem.batch * problem.heads * max(tiles, 64) > MAX_BLOCKS:
            return (
                f"B is {problem.batch}, H {problem.heads}, N {problem.positions}: expected at most 2^31 blocks of work"
            )
        return self.device_refusal(problem.device)

    def _device_refusal(self, device: torch.device) -> str | None:
        """Why nothing can be launched on `device`, or None if it can."""
        if device.type != "cuda":
            return f"device is {device}: expected a CUDA device"
        capability = torch.cuda.get_device_capability(device)
        reason = architecture_refusal(self.core.architectures, self.core.ptx_architectures, capability)
        return None if reason is None else f"device {device} {reason}"

    def make_plan(self, described: Any, device: torch.device) -> Any:
        """How the core launches a problem, as it takes both, on `device`."""
        known: Any = torch.cuda.get_device_properties(device)
        is_hopper, parts = (known.major, known.minor) == (9, 0), self.wanted_parts()
        served = is_hopper and self.may_use_hopper()
        properties = self.core.Device(
            known.multi_processor_count,
            known.shared_memory_per_block_optin,
            hopper=served and "tiles" in parts,
            overlap=is_hopper and self.may_overlap() and "overlap" in parts,
            one_launch=served and "loop" in parts,
            by_default=self.chooses_parts(),
        )
        return self.core.plan(described, properties)

    def may_use_hopper(self) -> bool:
        """Whether the kernels for Hopper may serve calls there."""
        return not self.wanted_parts().isdisjoint({"tiles", "loop"}) and "90a" in self.core.architectures

    def may_overlap(self) -> bool:
        """Whether kernels there wait for those in front of them: PTX of older architectures does not."""
        return any(parse_architecture(name)[0] == (9, 0) for name in self.core.architectures)

    def wanted_parts(self) -> frozenset[str]:
        """What EMA_OPS_HOPPER names, or all parts where the core chooses."""
        return frozenset(HOPPER_PARTS) if self.chooses_parts() else hopper_parts()

    def chooses_parts(self) -> bool:
        """Whether the core turns parts on by itself, by the size of a problem (csrc/hopper/defaults.h)."""
        return self.core.hopper_by_default and not os.environ.get("EMA_OPS_HOPPER")

    def current(self, device: torch.device) -> tuple[AbstractContextManager, int, int]:
        """What makes `device` the current one, its number and its current stream."""
        index = device.index
        guard = ALREADY_CURRENT if torch.cuda.current_device() == index else torch.cuda.device(index)
        # as compiled graphs ask for it: an object of the stream costs more than its launch
        return guard, index, torch._C._cuda_getCurrentRawStream(index)

    def reads_float8(self, problem):
        return self.planned("em_attend", problem, tf32=False, boxed=False, eight_bits=True)[1].eight_bits

    def em_forward(self, problem, x, bases, weight):
        x = in_order(problem, x)
        bases = in_float32(bases)
        matrices = (problem.batch, problem.heads, problem.channels, problem.num_bases)
        path, last = empty(problem, problem.num_iters, *matrices), empty(problem, *matrices)
        mass = empty(problem, problem.num_iters, problem.batch, problem.heads, problem.num_bases)
        length, y = torch.empty_like(mass), empty_like_order(x, dtype=problem.dtype)
        self._run(
            "em_forward", problem, as_features(problem, x), as_weight(weight), as_bases(bases), as_features(problem, y),
            *map(address, (path, last, mass, length)), eight_bits=x.dtype == FLOAT8,
        )  # fmt: skip
        return y, last, path, mass, length

    def em_attend(self, problem, x, bases, weight):
        x, bases = in_order(problem, x), in_float32(bases)
        y = empty_like_order(x, dtype=problem.dtype)
        last = empty(problem, problem.batch, problem.heads, problem.channels, problem.num_bases)
        self._run(
            "em_attend", problem, as_features(problem, x), as_weight(weight), as_bases(bases),
            as_features(problem, y), address(last), eight_bits=x.dtype == FLOAT8,
        )  # fmt: skip
        return y, last

    def em_backward(self, problem, grad_y, grad_bases, x, weight, bases, path, mass, length, need_bases):
        x, grad_y, grad_bases = in_order(problem, x), in_order(problem, grad_y), dense(grad_bases)
        path, bases, mass, length = dense(path), dense(bases), dense(mass), dense(length)
        grad_x = empty_like_order(x)
        grad_initial = torch.empty_like(bases) if need_bases else None
        self._run(
            "em_backward", problem, as_features(problem, x), as_weight(weight), as_features(problem, grad_y),
            *map(address, (grad_bases, path, bases, mass, length)), as_features(problem, grad_x),
            address(grad_initial),
        )  # fmt: skip
        return grad_x, grad_initial

    def em_step(self, problem, x, bases, weight, logit_bias):
        x, bases, logit_bias = in_order(problem, x), in_float32(bases), dense(logit_bias)
        sums = empty(problem, problem.batch, problem.heads, problem.channels, problem.num_bases)
        mass = torch.empty_like(sums[:, :, 0])
        self._run(
            "em_step", problem, as_features(problem, x), as_weight(weight), as_bases(bases),
            *map(address, (logit_bias, sums, mass)),
        )  # fmt: skip
        return sums, mass

    def em_step_backward(self, problem, grad_sums, grad_mass, x, bases, weight, logit_bias):
        x, bases, logit_bias = in_order(problem, x), in_float32(bases), dense(logit_bias)
        grad_sums, grad_mass = dense(grad_sums), dense(grad_mass)
        grad_x, grad_bases, grad_logit_bias = (
            empty_like_order(x),
            torch.empty_like(grad_sums),
            torch.empty_like(grad_mass),
        )
        self._run(
            "em_step_backward", problem, as_features(problem, x), as_weight(weight), as_bases(bases),
            *map(address, (logit_bias, grad_sums, grad_mass)), as_features(problem, grad_x),
            address(grad_bases), address(grad_logit_bias),
        )  # fmt: skip
        return grad_x, grad_bases, grad_logit_bias

    def em_reconstruct(self, problem, x, logit_bases, value_bases, logit_bias):
        x, logit_bias = in_order(problem, x), dense(logit_bias)
        logit_bases, value_bases = in_float32(logit_bases), in_float32(value_bases)
        y = empty_like_order(x, problem.value_channels)
        self._run(
            "em_reconstruct", problem, as_features(problem, x), as_bases(logit_bases), as_bases(value_bases),
            address(logit_bias), as_features(problem, y),
        )  # fmt: skip
        return y

    def em_reconstruct_backward(self, problem, grad_y, x, logit_bases, value_bases, logit_bias):
        x, grad_y, logit_bias = in_order(problem, x), in_order(problem, grad_y), dense(logit_bias)
        logit_bases, value_bases = in_float32(logit_bases), in_float32(value_bases)
        grad_x = empty_like_order(x)
        per_base = (problem.batch, problem.heads, problem.num_bases)
        small = (
            empty(problem, *per_base[:2], problem.channels, problem.num_bases),
            empty(problem, *per_base[:2], problem.value_channels, problem.num_bases),
            empty(problem, *per_base),
        )
        self._run(
            "em_reconstruct_backward", problem, as_features(problem, x), as_bases(logit_bases),
            as_bases(value_bases), address(logit_bias), as_features(problem, grad_y),
            as_features(problem, grad_x), *map(address, small),
        )  # fmt: skip
        return grad_x, *small

    def em_folded_forward(self, problem, x, bases, weight, conv_weight, conv_bias):
        x, bases, conv_weight = in_order(problem, x), in_float32(bases), aligned(conv_weight.to(x.dtype))
        matrices = (problem.batch, 1, problem.channels, problem.num_bases)
        path, sums = (empty(problem, problem.num_iters, *matrices) for _ in range(2))
        mass = empty(problem, problem.num_iters, problem.batch, 1, problem.num_bases)
        last, length, y = empty(problem, *matrices), torch.empty_like(mass), empty_like_order(x)
        self._run(
            "em_folded_forward", problem, as_features(problem, x), as_weight(weight), as_bases(bases),
            address(conv_weight), address(conv_bias), as_features(problem, y),
            *map(address, (path, sums, last, mass, length)),
        )  # fmt: skip
        return y, last, path, sums, mass, length

    def em_folded_backward(
        self, problem, grad_y, grad_bases, x, weight, conv_weight, conv_bias,
        bases, path, sums, mass, length, need_bases,
    ):  # fmt: skip
        x, grad_y, grad_bases = in_order(problem, x), in_order(problem, grad_y), dense(grad_bases)
        conv_weight = aligned(conv_weight.to(x.dtype))
        bases, path, sums, mass, length = map(dense, (bases, path, sums, mass, length))
        grad_x, stop = empty_like_order(x), problem.num_iters - problem.grad_iters
        grad_sums, logit_sums = (torch.empty_like(path[stop:]) for _ in range(2))
        logit_mass, grad_initial = torch.empty_like(mass[stop:]), torch.empty_like(bases) if need_bases else None
        self._run(
            "em_folded_backward", problem, as_features(problem, x), as_weight(weight), address(conv_weight),
            address(conv_bias), as_features(problem, grad_y), *map(address, (grad_bases, path, bases, mass, length)),
            as_features(problem, grad_x), *map(address, (grad_sums, logit_sums, logit_mass, grad_initial)),
        )  # fmt: skip
        gradients = convolution_gradient(
            problem, (*grad_sums, *path[stop:]), (*sums[stop:], *logit_sums), (*mass[stop:], *logit_mass), rounded=True
        )
        return grad_x, *gradients, grad_initial

    def em_unit(self, problem, x, bases, weight, weight1, bias1, weight2, bias2):
        x, bases, weight2 = in_order(problem, x), in_float32(bases), aligned(weight2)
        y, last = empty_like_order(x), empty(problem, problem.batch, 1, problem.channels, problem.num_bases)
        self._run(
            "em_unit", problem, as_features(problem, x), as_weight(weight), as_bases(bases),
            *map(address, (weight1, bias1, weight2, bias2)), as_features(problem, y), address(last),
        )  # fmt: skip
        return y, last

    def _run(self, entry: str, problem: Problem, *arguments: Any, eight_bits: bool = False) -> None:
        """Call an entry point of the core with a workspace; all it does is to launch kernels."""
        tf32 = problem.dtype == torch.float32 and tf32_allowed()
        boxed = not eight_bits and self.may_use_hopper() and all(map(can_be_boxed, arguments))
        described, plan, size = self.planned(entry, problem, tf32=tf32, boxed=boxed, eight_bits=eight_bits)
        workspace = torch.empty(size, dtype=torch.uint8, device=problem.device)
        guard, device, stream = self.current(problem.device)
        with guard:
            getattr(self.core, entry)(described, plan, (device, stream, workspace.data_ptr()), *arguments)

    def _plan(self, entry: str, problem: Problem, *, tf32: bool, boxed: bool, eight_bits: bool) -> tuple[Any, Any, int]:
        """The problem as the core takes it, its plan, and the bytes of workspace of an entry point."""
        described = self.core.Problem()
        for name in (
            "batch", "heads", "positions", "channels", "value_channels", "num_bases", "weighted", "num_iters",
            "grad_iters", "scale", "eps",
        ):  # fmt: skip
            setattr(described, name, getattr(problem, name))
        described.dtype = getattr(self.core.Dtype, DTYPES[problem.dtype])
        described.eight_bits = eight_bits
        described.tf32 = tf32
        described.boxed = boxed
        # a copy costs as much as two passes over the features
        described.may_copy = entry in LOOPS and problem.num_iters > 1
        described.positions_fastest = problem.order == "BHCN"
        described.eps_max = problem.eps_mode == "max"
        plan = self.make_plan(described, problem.device)
        return described, plan, getattr(self.core, f"{entry}_bytes")(described, plan)


def load_core() -> CudaBackend:
    """The backend with the compiled module, or with the reason why there is none."""
    try:
        return CudaBackend(importlib.import_module("ema_ops._C"))
    except ModuleNotFoundError:
        said = BUILD_RECORD.read_text().strip() if BUILD_RECORD.exists() else "ema_ops was not installed with pip"
        return CudaBackend(None, f"there is no compiled core ema_ops._C: {said}")
    except ImportError as error:
        return CudaBackend(None, f"import ema_ops._C failed: {error}")


def tf32_allowed() -> bool:
    """Whether float32 products may drop to TF32, as in PyTorch's own matrix products."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


BACKEND = load_core()
