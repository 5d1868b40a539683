"""EM attention behind a 1x1 convolution, with the convolution applied to the bases and not to the features.

Of f = x W^T + b the logits are f M = x (W^T M) + b M, and the sums of the M-step are f^T Z = W (x^T Z) + b s^T with the
mass s. So the loop reads x, and W meets C x K numbers once per iteration.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from . import autograd
from .autograd import EMReconstructFunction, EMStepFunction, InitialBasesFunction
from .backends import check_backend
from .functional import as_autocast_would
from .ops import autocast_enabled
from .problem import check_count, check_eps, check_grad_iters, check_scale


def folded_em_attention(
    x: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    bases: Tensor,
    weight: Tensor | None = None,
    *,
    layout: str = "BNC",
    num_iters: int = 3,
    scale: float = 1.0,
    grad_iters: int | None = None,
    eps: float = 1e-6,
    eps_mode: str = "add",
    backend: str | None = None,
    moves_bases: bool = False,
) -> tuple[Tensor, Tensor]:
    """`apply_em_attention` of the convolution of `x`, with one head: y in the shape and dtype of x and the last bases.

    The gradient reaches x, both parameters of the convolution and the bases, and is that of the two steps one after
    the other: iterations that carry none take the convolved features as constants.

    Args:
        x: features [B, N, C] or, with layout "BCN", [B, C, *spatial].
        conv_weight, conv_bias: [C, C] or [C, C, 1, 1] (out, in), and [C] or None.
        bases: [1, C, K] or [B, 1, C, K].
        weight: [B, N], any size may be 1.
        layout, moves_bases: as in `apply_em_attention`; all others as in `em_attention`.

    Raises:
        ValueError, TypeError: an option does not fit, or the backend cannot serve the call.
        RuntimeError: the forward is recomputed inside backward and `moves_bases`.
    """
    num_iters = check_count("num_iters", num_iters)
    grad_iters = check_grad_iters(grad_iters, num_iters)
    scale, eps = check_scale(scale), check_eps(eps, eps_mode)
    check_backend(backend)
    x = as_autocast_would(x)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    matrix, bias = conv_weight.flatten(1).to(dtype), None if conv_bias is None else conv_bias.to(dtype)
    carrying = (x, matrix, bias)
    constant = (x.detach(), matrix.detach(), None if bias is None else bias.detach())
    if grad_iters < num_iters:
        bases = bases.detach()
    device_type = x.device.type
    # the products with the small bases stay in full precision
    off = torch.autocast(device_type, enabled=False) if autocast_enabled(device_type) else nullcontext()
    with off:
        m = autograd.run(InitialBasesFunction, bases.to(dtype), moves_bases)
        for iteration in range(num_iters):
            features, matrix, bias = carrying if iteration >= num_iters - grad_iters else constant
            logit_bases = matrix.mT @ m
            logit_bias = None if bias is None else scale * _beside_features(bias @ m)
            sums, mass = autograd.run(EMStepFunction, features, logit_bases, weight, logit_bias, layout, scale, backend)
            sums = matrix @ sums
            if bias is not None:
                sums = sums + bias.unsqueeze(-1) * mass.unsqueeze(-2)
            m = normalize(sums, mass, eps, eps_mode)
        return autograd.run(EMReconstructFunction, features, logit_bases, m, logit_bias, layout, scale, backend), m


def normalize(sums: Tensor, mass: Tensor, eps: float, eps_mode: str) -> Tensor:
    """Bases [.., C, K] of length one from the sums [.., C, K] and the mass [.., K].

    The mean sums / mass over its length, with eps in both divisions, as one division: nothing cancels in its gradient.
    """
    length = torch.linalg.vector_norm(sums, dim=-2, keepdim=True)
    mass = mass.unsqueeze(-2)
    size = length + eps * (mass + eps) if eps_mode == "add" else length.maximum(eps * mass.clamp_min(eps))
    return sums / (size if eps > 0 else size.masked_fill(size == 0, 1))


def _beside_features(product: Tensor) -> Tensor:
    """The bias times bases, [1, K] or [B, 1, K], as a logit bias: [K] where all images share it."""
    return product.squeeze(0) if product.dim() == 2 else product
