"""Inputs, and the comparison of the emulated core with float64 by the rule of `judge`."""

from __future__ import annotations

import torch
from judge import assert_close_to_reference

import ema_ops
from ema_ops import reference

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAYOUTS = ["rows", "image", "heads inside", "slice"]


def make_features(sizes, dtype, layout="rows", seed=0):
    """Normal features [B, N, C] or [B, H, N, C] in one of the memory orders."""
    generator = torch.Generator().manual_seed(seed)
    *outer, positions, channels = sizes
    if layout == "image":
        return torch.randn(*outer, channels, positions, generator=generator).to(dtype).transpose(-1, -2)
    if layout == "heads inside":
        return torch.randn(outer[0], positions, *outer[1:], channels, generator=generator).to(dtype).transpose(1, -2)
    if layout == "slice":
        wide = torch.randn(*outer, positions + 3, channels + 5, generator=generator).to(dtype)
        return wide[..., 1 : 1 + positions, 2 : 2 + channels]
    return torch.randn(*outer, positions, channels, generator=generator).to(dtype)


def make_bases(*sizes, seed=1):
    """Bases [.., C, K] of length one over C in float32."""
    return torch.nn.functional.normalize(torch.randn(sizes, generator=torch.Generator().manual_seed(seed)), dim=-2)


def run(function, x, bases, grad_y, grad_bases, dtype, **options):
    """Results and gradients of (x, bases), with everything in `dtype`; None keeps what is given."""

    def cast(tensor):
        return tensor if dtype is None or not torch.is_tensor(tensor) else tensor.to(dtype)

    x, bases = (cast(tensor.detach()).requires_grad_() for tensor in (x, bases))
    options = {name: cast(value) for name, value in options.items()}
    y, last = function(x, bases, **options)
    loss = (y * grad_y.to(y.dtype)).sum()
    if grad_bases is not None:
        loss = loss + (last * grad_bases.to(last.dtype)).sum()
    return y.detach(), last.detach(), *torch.autograd.grad(loss, (x, bases), allow_unused=True)


def check_forward(x, bases, **options):
    """Judge both results of the loop; returns them."""

    def cast(value, dtype):
        return value.to(dtype) if torch.is_tensor(value) else value

    def of_reference(dtype):
        options_of_dtype = {name: cast(value, dtype) for name, value in options.items()}
        return reference.em_attention(x.to(dtype), bases.to(dtype), **options_of_dtype)

    results = ema_ops.em_attention(x, bases, backend="cuda", **options)
    assert results[0].dtype == x.dtype
    assert results[1].dtype == torch.float32
    exact, plain = of_reference(torch.float64), of_reference(x.dtype)
    for name, ours, theirs, rounded in zip(("y", "bases"), results, exact, plain, strict=True):
        assert_close_to_reference(ours, theirs, rounded, name=name)
    return results


def check(x, bases, *, grad_bases=True, **options):
    """Judge the loop and its gradients; returns y, the last bases, and the gradients of x and bases."""
    generator = torch.Generator().manual_seed(2)
    grad_y = torch.randn(x.shape, generator=generator).to(x.dtype)
    sizes = (*x.shape[:-2], x.shape[-1], bases.shape[-1])
    arguments = x, bases, grad_y, torch.randn(sizes, generator=generator) if grad_bases else None
    ours = run(ema_ops.em_attention, *arguments, None, backend="cuda", **options)
    exact = run(reference.em_attention, *arguments, torch.float64, **options)
    plain = run(reference.em_attention, *arguments, x.dtype, **options)
    assert ours[0].dtype == ours[2].dtype == x.dtype
    factors = {"y": 2.0, "bases": 2.0, "grad_x": 3.0, "grad_bases": 3.0}
    for (name, factor), actual, expected, yardstick in zip(factors.items(), ours, exact, plain, strict=True):
        assert (actual is None) == (expected is None), name
        if actual is not None:
            assert_close_to_reference(actual, expected, yardstick, factor=factor, name=name)
    return ours
