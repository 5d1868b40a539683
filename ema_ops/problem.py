"""What a call asks for, as one frozen value, and the one validator that builds it or raises.

The `check_*` functions run in front of the operators and look at rank, dtype, device, channels and bases
only, so that `torch.compile` guards on nothing else. `Problem.build` runs inside the operators and looks at
everything that depends on the batch, the number of positions and the strides.
"""

from __future__ import annotations

import math
import os
import sys
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .layout import memory_order

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
FLOAT8 = torch.float8_e4m3fn  # of features in inference
LOOP_DTYPES = (*DTYPES, FLOAT8)
EPS_MODES = ("add", "max")
MAX_COUNT = 2**31 - 1


def check_floating(name: str, value: Any, dtypes: tuple[torch.dtype, ...] = DTYPES) -> None:
    """A tensor of one of `dtypes`."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is {type(value).__name__}: expected a tensor")
    if value.dtype not in dtypes:
        raise TypeError(f"{name} has dtype {value.dtype}: expected one of {_names(dtypes)}")
    _check_strided(name, value)


def check_loop_features(x: Any) -> None:
    """The dtype of `x` must be one that the whole loop takes: one of `DTYPES`, or `FLOAT8` without a gradient."""
    check_floating("x", x, LOOP_DTYPES)
    if x.dtype == FLOAT8 and x.requires_grad:
        raise ValueError(
            "x of float8_e4m3fn requires a gradient, but 8 bits are for inference: expected x.to(torch.bfloat16)"
        )


def check_features(x: Any) -> None:
    """`x` must be a real floating tensor [B, N, C] or [B, H, N, C] with C >= 1."""
    check_floating("x", x)
    check_rows(x)


def check_rows(x: Tensor) -> None:
    """`x` must be [B, N, C] or [B, H, N, C] with C >= 1."""
    if x.dim() not in (3, 4):
        raise ValueError(f"x has shape {_shape(x)}: expected [B, N, C] or [B, H, N, C]")
    if x.shape[-1] < 1:
        raise ValueError(f"x has shape {_shape(x)}: expected at least one channel")


def check_bases(name: str, bases: Any, x: Tensor, *, channels: int | None) -> None:
    """`bases` must be [.., C, K] beside `x`; `channels=None` leaves its width free (value bases)."""
    check_floating(name, bases)
    shape, rank = bases.shape, x.dim()
    if len(shape) not in (rank - 1, rank):
        raise ValueError(f"{name} has shape {_shape(bases)}: expected {_bases_of(rank)} beside x {_shape(x)}")
    if channels is not None and shape[-2] != channels:
        raise ValueError(
            f"{name} has shape {_shape(bases)}, {shape[-2]} channels: expected {_bases_of(rank)} with C = {channels}"
        )
    if shape[-2] < 1 or shape[-1] < 1:
        raise ValueError(f"{name} has shape {_shape(bases)}: expected at least one channel and one base")
    if rank == 4 and shape[-3] != x.shape[1]:
        raise ValueError(f"{name} has shape {_shape(bases)}: expected {_bases_of(rank)} with H = {x.shape[1]}")
    if bases.dtype == torch.float64 and x.dtype != torch.float64:
        raise TypeError(f"{name} is float64 beside x of {x.dtype}: expected float32 or the dtype of x")
    _check_device(name, bases, x)


def check_weight(weight: Any, x: Tensor, ranks: tuple[int, ...], expected: str) -> None:
    """`weight` must be a bool or floating constant of one of `ranks` dimensions; `expected` says which in words."""
    if weight is None:
        return
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight is {type(weight).__name__}: expected a tensor or None")
    if weight.dtype != torch.bool and weight.dtype not in DTYPES:
        raise TypeError(f"weight has dtype {weight.dtype}: expected bool or one of {_names(DTYPES)}")
    _check_strided("weight", weight)
    if weight.dim() not in ranks:
        raise ValueError(f"weight has shape {_shape(weight)}: expected it {expected}")
    if weight.requires_grad:
        raise ValueError("weight requires a gradient, but weights are constants: expected weight.detach()")
    _check_device("weight", weight, x)


def check_weight_values(weight: Tensor) -> None:
    """Finite numbers >= 0, looked at where that costs no synchronisation, or on request. Raises ValueError."""
    if (_values_are_wanted() or weight.device.type == "cpu") and weight.dtype != torch.bool:
        wrong = weight[~((weight >= 0) & weight.isfinite())]
        if wrong.numel() > 0:
            raise ValueError(f"weight has the value {wrong[0].item():g}: expected finite numbers >= 0")


def check_logit_bias(logit_bias: Any, x: Tensor, num_bases: int) -> None:
    """`logit_bias` must be [K] or [B, K] (or [B, H, K] beside a 4-D `x`)."""
    if logit_bias is None:
        return
    check_floating("logit_bias", logit_bias)
    ranks = (1, 2) if x.dim() == 3 else (1, 2, 3)
    if logit_bias.dim() not in ranks or logit_bias.shape[-1] != num_bases:
        expected = "[K] or [B, K]" if x.dim() == 3 else "[K], [B, K] or [B, H, K]"
        raise ValueError(f"logit_bias has shape {_shape(logit_bias)}: expected {expected} with K = {num_bases}")
    if logit_bias.dtype == torch.float64 and x.dtype != torch.float64:
        raise TypeError(f"logit_bias is float64 beside x of {x.dtype}: expected float32 or the dtype of x")
    _check_device("logit_bias", logit_bias, x)


def check_same_num_bases(logit_bases: Tensor, value_bases: Tensor) -> None:
    """Both sides of a reconstruction must have the same K."""
    if logit_bases.shape[-1] != value_bases.shape[-1]:
        raise ValueError(
            f"value_bases has shape {_shape(value_bases)}, {value_bases.shape[-1]} bases: "
            f"expected K = {logit_bases.shape[-1]} as in logit_bases {_shape(logit_bases)}"
        )


def check_flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}): expected True or False")
    return value


def check_count(name: str, value: Any) -> int:
    """A whole number of at least 1."""
    if type(value) is not int and (isinstance(value, bool) or not isinstance(value, Integral)):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}): expected a whole number")
    count = int(value)
    if not 1 <= count <= MAX_COUNT:
        raise ValueError(f"{name} is {count}: expected at least 1 and at most {MAX_COUNT}")
    return count


def check_grad_iters(grad_iters: Any, num_iters: int) -> int:
    """The number of last iterations that carry the gradient; None means all of them."""
    if grad_iters is None:
        return num_iters
    if isinstance(grad_iters, bool) or not isinstance(grad_iters, Integral):
        raise TypeError(f"grad_iters is {grad_iters!r} ({type(grad_iters).__name__}): expected a whole number or None")
    count = int(grad_iters)
    if not 0 <= count <= num_iters:
        raise ValueError(f"grad_iters is {count}: expected 0 to num_iters = {num_iters}, or None for all")
    return count


def check_scale(scale: Any) -> float:
    """A finite temperature."""
    if type(scale) is not float and (isinstance(scale, bool) or not isinstance(scale, Real)):
        raise TypeError(f"scale is {scale!r} ({type(scale).__name__}): expected a number")
    number = _as_float(scale)
    if not -math.inf < number < math.inf:
        raise ValueError(f"scale is {scale}: expected a finite number")
    return number


def check_eps(eps: Any, eps_mode: Any) -> float:
    """A finite eps >= 0 and one of the two ways to apply it."""
    if type(eps) is not float and (isinstance(eps, bool) or not isinstance(eps, Real)):
        raise TypeError(f"eps is {eps!r} ({type(eps).__name__}): expected a number")
    number = _as_float(eps)
    if not 0 <= number < math.inf:
        raise ValueError(f"eps is {eps}: expected a finite number >= 0")
    if not isinstance(eps_mode, str) or eps_mode not in EPS_MODES:
        raise ValueError(f"eps_mode is {eps_mode!r}: expected one of {', '.join(map(repr, EPS_MODES))}")
    return number


def check_unit(x: Tensor, bases: Tensor, **parameters: Tensor) -> None:
    """The weights [C, C] and biases [C] of the convolutions around a loop with one head."""
    heads, channels = bases.shape[-3:-1]
    if heads != 1:
        raise ValueError(f"bases has {heads} heads: expected one, for each would read all channels")
    for name, value in parameters.items():
        check_floating(name, value)
        expected = [channels, channels] if "weight" in name else [channels]
        if _shape(value) != expected:
            raise ValueError(f"{name} has shape {_shape(value)}: expected {expected}")
        _check_device(name, value, x)


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which features of `dtype` are multiplied, and y comes: for `FLOAT8` bfloat16, which has all of its numbers."""
    return torch.bfloat16 if dtype == FLOAT8 else dtype


class LoopOptions(NamedTuple):
    """The last fields of a `Problem`: what is neither size nor memory."""

    num_iters: int = 1
    grad_iters: int = 1
    scale: float = 1.0
    eps: float = 0.0
    eps_mode: str = "add"
    unit: bool = False


class Problem(NamedTuple):
    """One call, complete: sizes, dtype, memory order and the options of the loop.

    `order` names the dimensions of `x` from slowest to fastest in memory, one of "BHNC" (rows), "BNHC" (rows
    with the heads inside, as in a channels-last image) and "BHCN" (a contiguous image). `unit` says that the loop
    is asked for with the convolutions around it (`Backend.em_unit`). `dtype` is that of `arithmetic_dtype`.
    """

    batch: int
    heads: int
    positions: int
    channels: int
    value_channels: int
    num_bases: int
    dtype: torch.dtype
    device: torch.device
    order: str
    weighted: bool = False
    biased: bool = False
    num_iters: int = 1
    grad_iters: int = 1
    scale: float = 1.0
    eps: float = 0.0
    eps_mode: str = "add"
    unit: bool = False

    @property
    def accumulate_dtype(self) -> torch.dtype:
        """The dtype of bases, masses and norms: float32, or float64 for float64."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def is_empty(self) -> bool:
        """True when there is no position at all to work on."""
        return self.batch * self.heads * self.positions == 0

    @classmethod
    def build(
        cls,
        x: Tensor,
        bases: Tensor,
        *,
        weight: Tensor | None = None,
        logit_bias: Tensor | None = None,
        value_bases: Tensor | None = None,
        **options: Any,
    ) -> Problem:
        """The problem of the rows `x` [B, H, N, C] beside what the operator got; raises ValueError.

        bases and value_bases are [H, C, K] or [B, H, C, K]; weight is [B, N] or [B, H, N] with any size 1;
        logit_bias is [K], [B, K] or [B, H, K]. `options` are further fields.
        """
        batch, heads, positions, channels = x.shape
        for name, tensor in (("bases", bases), ("value_bases", value_bases)):
            if tensor is not None and tensor.dim() == 4 and tensor.shape[0] != batch:
                raise ValueError(f"{name} is made for a batch of {tensor.shape[0]}: expected B = {batch} as in x")
        if logit_bias is not None and logit_bias.shape[:-1] not in ((), (batch,), (batch, heads)):
            raise ValueError(f"logit_bias has shape {_shape(logit_bias)}: expected B = {batch}, H = {heads} as in x")
        if weight is not None:
            _check_weight_sizes(weight, (batch, positions) if weight.dim() == 2 else (batch, heads, positions))
        return cls(
            batch,
            heads,
            positions,
            channels,
            bases.shape[-2] if value_bases is None else value_bases.shape[-2],
            bases.shape[-1],
            arithmetic_dtype(x.dtype),
            x.device,
            memory_order(x),
            weight is not None,
            logit_bias is not None,
            **options,
        )


def _values_are_wanted() -> bool:
    text = os.environ.get("EMA_OPS_CHECK_VALUES", "")
    if text not in ("", "0", "1"):
        raise ValueError(f"EMA_OPS_CHECK_VALUES is {text!r}: expected 1 or 0")
    return text == "1"


def _as_float(value: Any) -> float:
    """`value` as a float; a whole number too large for one as infinity."""
    return math.inf if isinstance(value, int) and abs(value) > sys.float_info.max else float(value)


def _check_strided(name: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.is_nested:
        kind = "nested" if tensor.is_nested else str(tensor.layout)
        raise TypeError(f"{name} is a {kind} tensor: expected a dense (strided) one")


def _check_device(name: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.device != x.device:
        raise ValueError(f"{name} is on {tensor.device}: expected {x.device}, the device of x")


def _check_weight_sizes(weight: Tensor, full: tuple[int, ...]) -> None:
    if any(size not in (1, target) for size, target in zip(weight.shape, full, strict=True)):
        raise ValueError(f"weight has shape {_shape(weight)}: expected it to broadcast to {list(full)}")


def _bases_of(rank: int) -> str:
    """The shapes of bases beside features of `rank` dimensions."""
    return "[C, K] or [B, C, K]" if rank == 3 else "[H, C, K] or [B, H, C, K]"


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
