"""Calls of every backend's tests: their inputs, and the comparison with float64 by the rule of `judge`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from judge import assert_close_to_reference
from torch import Tensor

import ema_ops
from ema_ops import reference
from ema_ops.problem import arithmetic_dtype

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAYOUTS = ["rows", "image", "heads inside", "slice"]


def normal(*sizes: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers."""
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed)).to(dtype)


def uniform(*sizes: int, seed: int) -> Tensor:
    """Weights from 0 to 1."""
    return torch.rand(sizes, generator=torch.Generator().manual_seed(seed))


def make_features(sizes: Sequence[int], dtype: torch.dtype, layout: str = "rows", seed: int = 0) -> Tensor:
    """Normal features [B, N, C] or [B, H, N, C] in one of the memory orders `LAYOUTS`."""
    *outer, positions, channels = sizes
    if layout == "image":
        return normal(*outer, channels, positions, seed=seed, dtype=dtype).transpose(-1, -2)
    if layout == "heads inside":
        return normal(outer[0], positions, *outer[1:], channels, seed=seed, dtype=dtype).transpose(1, -2)
    if layout == "slice":
        wide = normal(*outer, positions + 3, channels + 5, seed=seed, dtype=dtype)
        return wide[..., 1 : 1 + positions, 2 : 2 + channels]
    return normal(*outer, positions, channels, seed=seed, dtype=dtype)


def make_bases(*sizes: int, seed: int = 1) -> Tensor:
    """Bases [.., C, K] of length one over C in float32."""
    return torch.nn.functional.normalize(normal(*sizes, seed=seed), dim=-2)


def step(
    x: Tensor, bases: Tensor, *, logit_bias: Tensor | None = None, weight: Tensor | None = None, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The formula of `ema_ops.em_step`."""
    return reference.weighted_sums(x, reference.e_step(x, bases, scale, logit_bias), weight)


def reconstruct(
    x: Tensor, logit_bases: Tensor, value_bases: Tensor, *, logit_bias: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """The formula of `ema_ops.em_reconstruct`."""
    return reference.e_step(x, logit_bases, scale, logit_bias) @ value_bases.transpose(-1, -2)


FORMULAS: dict[str, Callable] = {"attention": reference.em_attention, "step": step, "reconstruct": reconstruct}
RESULTS = {"attention": ("y", "bases"), "step": ("sums", "mass"), "reconstruct": ("y",)}
Grads = Sequence["Tensor | None"]


def run(
    call: str,
    inputs: dict[str, Tensor],
    grads: Grads | None,
    *,
    backend: str | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> dict[str, Tensor | None]:
    """Results of `ema_ops.em_<call>` with a backend, or of its formula in `dtype`; and, from `grads`, all gradients.

    `grads` are those of the results, None for one that gets none; no `grads` at all, no gradients.
    """
    leaves = {
        name: (tensor.detach() if dtype is None else tensor.detach().to(dtype)).requires_grad_(grads is not None)
        for name, tensor in inputs.items()
    }
    if dtype is not None:
        options = {name: value.to(dtype) if torch.is_tensor(value) else value for name, value in options.items()}
    function = FORMULAS[call] if backend is None else partial(getattr(ema_ops, f"em_{call}"), backend=backend)
    outputs = function(**leaves, **options)
    outputs = (outputs,) if torch.is_tensor(outputs) else outputs
    results = {name: output.detach() for name, output in zip(RESULTS[call], outputs, strict=True)}
    if grads is None:
        return results
    wanted = [i for i, grad in enumerate(grads) if grad is not None]
    gradients = torch.autograd.grad(
        [outputs[i] for i in wanted],
        list(leaves.values()),
        [grads[i].to(outputs[i].dtype) for i in wanted],
        allow_unused=True,
    )
    return results | {f"gradient of {name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}


def check(
    call: str,
    inputs: dict[str, Tensor],
    grads: Grads | None,
    backend: str,
    *,
    plain_dtype: torch.dtype | None = None,
    **options: Any,
) -> dict[str, Tensor | None]:
    """What `run` gives with `backend`, judged; `plain_dtype`: the precision of the yardstick, if not that of x."""
    dtype = arithmetic_dtype(inputs["x"].dtype)
    ours = run(call, inputs, grads, backend=backend, **options)
    exact = run(call, inputs, grads, dtype=torch.float64, **options)
    plain = run(call, inputs, grads, dtype=plain_dtype or dtype, **options)
    for name, actual in ours.items():
        assert (actual is None) == (exact[name] is None), name
        if actual is None:
            continue
        of_input = inputs.get(name.removeprefix("gradient of ")) if name.startswith("gradient") else None
        expected_dtype = of_input.dtype if of_input is not None else dtype if name == "y" else torch.float32
        assert actual.dtype == expected_dtype, name
        factor = 2.0 if of_input is None else 3.0
        assert_close_to_reference(actual, exact[name], plain[name], factor=factor, name=name)
    return ours


def check_loop(
    x: Tensor, bases: Tensor, backend: str, *, grad_y: bool = True, grad_bases: bool = True, **options: Any
) -> tuple[Tensor | None, ...]:
    """Judge the loop and its gradients; returns y, the last bases, and the gradients of x and bases.

    `grad_y` and `grad_bases` say which of the results get a gradient.
    """
    grads = loop_grads(x, bases)
    chosen = tuple(grad if wanted else None for grad, wanted in zip(grads, (grad_y, grad_bases), strict=True))
    return tuple(check("attention", {"x": x, "bases": bases}, chosen, backend, **options).values())


def check_forward(x: Tensor, bases: Tensor, backend: str, **options: Any) -> tuple[Tensor | None, ...]:
    """Judge both results of the loop; returns them."""
    return tuple(check("attention", {"x": x, "bases": bases}, None, backend, **options).values())


def run_loop(x: Tensor, bases: Tensor, backend: str, of: slice = slice(None), **options: Any) -> tuple[Tensor, ...]:
    """y, the last bases and both gradients of a loss over the images `of`, not judged."""
    grads = loop_grads(x, bases)
    for grad in grads:
        grad[[image for image in range(len(x)) if image not in range(*of.indices(len(x)))]] = 0
    return tuple(run("attention", {"x": x, "bases": bases}, grads, backend=backend, **options).values())


def loop_grads(x: Tensor, bases: Tensor) -> tuple[Tensor, Tensor]:
    """Normal gradients of both results."""
    return (
        normal(*x.shape, seed=2, dtype=x.dtype),
        normal(*x.shape[:-2], x.shape[-1], bases.shape[-1], seed=3),
    )


def assert_same_bits(first: Sequence[Tensor], second: Sequence[Tensor], of: slice = slice(None)) -> None:
    """All tensors of both are equal bit by bit, for the images `of`."""
    for ours, theirs in zip(first, second, strict=True):
        assert torch.equal(ours[of], theirs[of])
