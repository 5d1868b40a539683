"""A 1x1 convolution that was folded into the bases: what of it works on [C, K] and has no kernel of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..problem import Problem


def convolved_sums(conv_weight: Tensor, conv_bias: Tensor, sums: Tensor, mass: Tensor) -> Tensor:
    """Sums [.., C, K] and masses [.., K] of features as the sums of what the convolution makes of them."""
    return (conv_weight @ sums).addcmul_(conv_bias.unsqueeze(-1), mass.unsqueeze(-2))


def convolution_gradient(
    problem: Problem,
    outer: Sequence[Tensor],
    inner: Sequence[Tensor],
    inner_mass: Sequence[Tensor],
    *,
    rounded: bool,
) -> tuple[Tensor, Tensor]:
    """The sum of outer inner^T [C, C] and of outer inner_mass [C], over all matrices [.., C, K] and masses [.., K].

    With `rounded` the large product is in bfloat16 where the features are; float16 has not the range for it.
    """
    left, right = (torch.cat(list(matrices), -1).movedim(-2, 0).flatten(1) for matrices in (outer, inner))
    grad_bias = left @ torch.cat(list(inner_mass), -1).flatten()
    if rounded and problem.dtype == torch.bfloat16:
        left, right = left.bfloat16(), right.bfloat16()
    return (left @ right.mT).to(problem.accumulate_dtype), grad_bias
