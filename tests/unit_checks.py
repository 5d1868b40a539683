"""The EMA unit in evaluation as one call, and its comparison with float64 by the rule of `judge`."""

from __future__ import annotations

from typing import Any

import torch
from backend_checks import make_bases, normal
from judge import assert_close_to_reference
from torch import Tensor
from torch.nn import functional as F

from ema_ops import reference

NAMES = ("y", "bases")


def make_parameters(channels: int, num_bases: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Bases, and both convolutions in the dtype of the features with biases of float32."""
    return {
        "bases": make_bases(1, channels, num_bases),
        "weight1": (normal(channels, channels, seed=11) / channels**0.5).to(dtype),
        "bias1": normal(channels, seed=12) / 4,
        "weight2": (normal(channels, channels, seed=13) * (2 / channels) ** 0.5).to(dtype),
        "bias2": normal(channels, seed=14) / 4,
    }


def plain_unit(
    x: Tensor, bases: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """relu(x + conv2(relu(em_attention(conv1(x))))) of x [B, 1, N, C], and the last bases."""
    rebuilt, last = reference.em_attention(F.linear(x, weight1, bias1), bases, **options)
    return (x + F.linear(rebuilt.relu(), weight2, bias2)).relu(), last


def run_unit(x: Tensor, parameters: dict[str, Tensor], *, backend: str, **options: Any) -> tuple[Tensor, Tensor]:
    """The operator with the options of `em_attention`."""
    given = {"num_iters": 3, "scale": 1.0, "eps": 1e-6, "eps_mode": "add", "weight": None} | options
    operator = torch.ops.ema_ops.em_unit
    with torch.no_grad():
        return operator(x=x, layout="BHNC", backend=backend, **parameters, **given)


def check_unit(
    x: Tensor,
    parameters: dict[str, Tensor],
    backend: str,
    *,
    plain_dtype: torch.dtype | None = None,
    on: str | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """What `run_unit` gives, judged on the device `on`, by default that of x.

    `plain_dtype` is the precision of the yardstick, if not that of x.
    """

    def formula(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        given = {"x": x, **parameters, **options}
        return plain_unit(**{n: value.to(on, dtype) if torch.is_tensor(value) else value for n, value in given.items()})

    ours, exact, plain = (
        run_unit(x, parameters, backend=backend, **options), formula(torch.float64), formula(plain_dtype or x.dtype),
    )  # fmt: skip
    assert (ours[0].dtype, ours[1].dtype) == (x.dtype, torch.float32)
    for name, got, *yardsticks in zip(NAMES, ours, exact, plain, strict=True):
        assert_close_to_reference(got.to(yardsticks[0].device), *yardsticks, name=name)
    return ours
