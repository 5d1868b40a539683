"""EM attention behind a convolution folded into the bases, and its comparison with float64 by the rule of `judge`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from backend_checks import make_bases, normal
from judge import assert_close_to_reference
from torch import Tensor

from ema_ops import reference
from ema_ops.folding import folded_em_attention

NAMES = ("y", "bases", "gradient of x", "of the weight", "of the bias", "of the bases")


def plain(
    x: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    bases: Tensor,
    weight: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """The convolution, then the loop as on paper; bases [1, C, K] or [B, 1, C, K]."""
    convolved = x @ conv_weight.mT
    if conv_bias is not None:
        convolved = convolved + conv_bias
    y, last = reference.em_attention(convolved, bases.squeeze(-3), weight=weight, **options)
    return y, last.unsqueeze(1)


def results_and_gradients(
    function: Callable, tensors: Sequence[Tensor | None], grads: Sequence[Tensor] | None = None, **options: Any
) -> tuple[Tensor, ...]:
    """y, the last bases, and the gradient of every tensor (None where it has none)."""
    y, last = function(*tensors, **options)
    if grads is None:
        grads = (normal(*y.shape, seed=2).to(y.dtype), normal(*last.shape, seed=3).to(last.dtype))
    if not y.requires_grad:
        return y, last
    wanted = [tensor for tensor in tensors if tensor is not None]
    got = torch.autograd.grad(
        (y, last), wanted, [g.to(r.dtype) for g, r in zip(grads, (y, last), strict=True)], allow_unused=True
    )
    return y, last, *got


def check_folding(
    x: Tensor, num_bases: int, backend: str, *, plain_dtype: torch.dtype | None = None, **options: Any
) -> tuple[Tensor, ...]:
    """Judge y, the last bases and all gradients of `folded_em_attention` of `x` [B, N, C]; returns them.

    `plain_dtype`: the precision of the yardstick, if not that of x.
    """
    batch, _, channels = x.shape
    given = (
        x,
        (normal(channels, channels, seed=5) / channels**0.5).to(x.dtype),
        normal(channels, seed=6, dtype=x.dtype),
        make_bases(1, channels, num_bases),
    )
    grads = (normal(*x.shape, seed=2, dtype=x.dtype), normal(batch, 1, channels, num_bases, seed=3))

    def run(function: Callable, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
        def cast(value: Any) -> Any:
            return value.to(dtype or value.dtype) if torch.is_tensor(value) else value

        leaves = [cast(tensor).detach().requires_grad_() for tensor in given]
        return results_and_gradients(partial(function, **{n: cast(v) for n, v in options.items()}), leaves, grads)

    ours = run(partial(folded_em_attention, backend=backend))
    exact, yardstick = run(plain, torch.float64), run(plain, plain_dtype or x.dtype)
    dtypes = [x.dtype, torch.float32, x.dtype, x.dtype, x.dtype, torch.float32]
    for name, dtype, *results in zip(NAMES, dtypes, ours, exact, yardstick, strict=True):
        if results[0] is None:
            # a truncated gradient reaches no initial bases
            assert results[1] is results[2] is None, name
            continue
        assert results[0].dtype == dtype, name
        assert_close_to_reference(*results, factor=3.0 if name.startswith(("gradient", "of")) else 2.0, name=name)
    return ours
