"""EM attention behind a 1x1 convolution, with the convolution applied to the bases and not to the features.

Of f = x W^T + b the logits are f M = x (W^T M) + b M, and the sums of the M-step are f^T Z = W (x^T Z) + b s^T with the
mass s. So the loop reads x, and W meets C x K numbers once per iteration, in `ema_ops::em_folded_forward`.
"""

from __future__ import annotations

from torch import Tensor

from . import autograd
from .autograd import FoldedAttentionFunction
from .backends import check_backend
from .functional import as_autocast_would
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
    x, conv_weight = as_autocast_would(x), conv_weight.flatten(1)
    if conv_bias is None:
        conv_bias = conv_weight.new_zeros(len(conv_weight))
    if grad_iters < num_iters:
        bases = bases.detach()
    if grad_iters == 0:
        x, conv_weight, conv_bias = x.detach(), conv_weight.detach(), conv_bias.detach()
    y, last_bases, *_ = autograd.run(
        FoldedAttentionFunction, x, bases, weight, conv_weight, conv_bias, moves_bases,
        layout, num_iters, grad_iters, scale, eps, eps_mode, backend,
    )  # fmt: skip
    return y, last_bases
