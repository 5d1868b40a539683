"""EM attention and its parts as functions. Every argument is checked here or, if it depends on B, N or strides, in
the operator's body; both raise ValueError or TypeError naming the value and what was expected."""

from __future__ import annotations

import torch
from torch import Tensor

from . import autograd
from .autograd import EMAttentionFunction, EMReconstructFunction, EMStepFunction
from .backends import check_backend
from .ops import autocast_enabled
from .problem import (
    FLOAT8,
    arithmetic_dtype,
    check_bases,
    check_count,
    check_eps,
    check_features,
    check_grad_iters,
    check_logit_bias,
    check_loop_features,
    check_rows,
    check_same_num_bases,
    check_scale,
    check_weight,
)


def em_attention(
    x: Tensor,
    bases: Tensor,
    *,
    num_iters: int = 3,
    scale: float = 1.0,
    weight: Tensor | None = None,
    grad_iters: int | None = None,
    eps: float = 1e-6,
    eps_mode: str = "add",
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """EM attention: T times E-step and M-step, then the features rebuilt from the bases.

    Li et al., ICCV 2019, equations 4 to 6. `ema_ops.reference.em_attention` is the same in plain PyTorch.

    Args:
        x: features [B, N, C] or [B, H, N, C] (heads); float32, bfloat16, float16 or float64, any strides. For
            inference also float8_e4m3fn, which counts as x.to(torch.bfloat16), exactly; what x was divided by to fit
            belongs into `scale`.
        bases: initial bases [C, K] or [B, C, K] (with heads [H, C, K] or [B, H, C, K]), in float32 or
            16 bits, float64 only beside x of it; used as they are, so normalise them over C first if you want the
            paper's start.
        num_iters: number of iterations T, at least 1.
        scale: temperature; logits are scale * x bases.
        weight: finite, non-negative weight of every position, broadcastable to [B, N] (with heads [N] or, with three
            dimensions, to [B, H, N]). A bool mask counts as 0 and 1. A position of weight 0 adds nothing to the bases;
            its own output is defined. Its features must be finite all the same: 0 times NaN is NaN.
        grad_iters: number of last iterations that carry the gradient: None for all (exact), 1 for one-step, 0 for
            none (results are constants, as in the official code).
        eps: keeps divisions by mass and by length finite.
        eps_mode: "add" divides by eps + value (official), "max" by max(eps, value) (mmsegmentation, Paddle).
        backend: "cuda", "triton", "torch" or None to choose. A named backend never falls back: it raises.

    Returns:
        y in the shape and dtype of x (bfloat16 for float8_e4m3fn), dense, with channels, positions or heads fastest in
        memory as in x; and the last bases [B, C, K] (with heads [B, H, C, K]) in float32 (float64 for float64). Under
        autocast x is cast like the operand of a matrix product.

    Raises:
        ValueError, TypeError: an argument does not fit, or the backend cannot serve the call.
        NotImplementedError, RuntimeError: a second or a forward-mode derivative is taken.
    """
    check_loop_features(x)
    check_rows(x)
    check_bases("bases", bases, x, channels=x.shape[-1])
    one_head = x.dim() == 3
    y, last_bases = apply_em_attention(
        x,
        bases.unsqueeze(-3) if one_head else bases,
        _full_rank(weight, x),
        layout="BNC" if one_head else "BHNC",
        num_iters=num_iters,
        scale=scale,
        grad_iters=grad_iters,
        eps=eps,
        eps_mode=eps_mode,
        backend=backend,
    )
    return y, last_bases.squeeze(1) if one_head else last_bases


def apply_em_attention(
    x: Tensor,
    bases: Tensor,
    weight: Tensor | None,
    *,
    layout: str,
    num_iters: int,
    scale: float,
    grad_iters: int | None,
    eps: float,
    eps_mode: str,
    backend: str | None,
    moves_bases: bool = False,
) -> tuple[Tensor, Tensor]:
    """`em_attention` of `x` in any layout of `layout.py`, beside bases [(B,) H, C, K] and a weight of full rank.

    The caller has checked x against the bases and the weight's rank. Returns y in the shape of x and the last bases
    [B, H, C, K]. `moves_bases` says that the caller will move `bases` afterwards: a recomputation of such a call
    inside backward would start from other bases, and raises RuntimeError.
    """
    num_iters = check_count("num_iters", num_iters)
    grad_iters = check_grad_iters(grad_iters, num_iters)
    scale, eps = check_scale(scale), check_eps(eps, eps_mode)
    check_backend(backend)
    x = as_autocast_would(x)
    if grad_iters < num_iters:
        bases = bases.detach()
    if grad_iters == 0:
        x = x.detach()
    y, last_bases, *_ = autograd.run(
        EMAttentionFunction, x, bases, weight, moves_bases,
        layout, num_iters, grad_iters, scale, eps, eps_mode, backend,
    )  # fmt: skip
    return y, last_bases


def em_step(
    x: Tensor,
    bases: Tensor,
    *,
    logit_bias: Tensor | None = None,
    weight: Tensor | None = None,
    scale: float = 1.0,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """One iteration before any division: the E-step and the weighted sums of the M-step.

    With responsibilities Z = softmax over K of (scale * x bases + logit_bias), returns x^T (weight * Z) and the
    sum of weight * Z over the positions. `sums / mass`, scaled to length one over C, are the next bases; an
    all-reduce of both over devices that share an image goes between.

    Args:
        x: features [B, N, C] or [B, H, N, C].
        bases: [C, K] or [B, C, K] (with heads [H, C, K] or [B, H, C, K]).
        logit_bias: added to the logits after `scale`, [K] or [B, K] (with heads also [B, H, K]).
        weight: as in `em_attention`.
        scale: temperature.
        backend: as in `em_attention`.

    Returns:
        sums [B, C, K] and mass [B, K] (with heads [B, H, C, K] and [B, H, K]) in float32 (float64 for float64),
        differentiable in x, bases and logit_bias.

    Raises:
        ValueError, TypeError: an argument does not fit, or the backend cannot serve the call.
    """
    check_features(x)
    check_bases("bases", bases, x, channels=x.shape[-1])
    check_logit_bias(logit_bias, x, bases.shape[-1])
    scale = check_scale(scale)
    check_backend(backend)

    one_head = x.dim() == 3
    sums, mass = autograd.run(
        EMStepFunction,
        as_autocast_would(x),
        bases.unsqueeze(-3) if one_head else bases,
        _full_rank(weight, x),
        logit_bias,
        "BNC" if one_head else "BHNC",
        scale,
        backend,
    )
    return (sums.squeeze(1), mass.squeeze(1)) if one_head else (sums, mass)


def em_reconstruct(
    x: Tensor,
    logit_bases: Tensor,
    value_bases: Tensor,
    *,
    logit_bias: Tensor | None = None,
    scale: float = 1.0,
    backend: str | None = None,
) -> Tensor:
    """Features rebuilt from bases: softmax over K of (scale * x logit_bases + logit_bias), times value_bases.

    Args:
        x: features [B, N, C] or [B, H, N, C].
        logit_bases: what x is compared with, [C, K] or [B, C, K] (with heads [H, C, K] or [B, H, C, K]).
        value_bases: what is mixed, [Cv, K] or [B, Cv, K] (with heads as above); Cv may differ from C.
        logit_bias: added to the logits after `scale`, [K] or [B, K] (with heads also [B, H, K]).
        scale: temperature.
        backend: as in `em_attention`.

    Returns:
        y [B, N, Cv] (with heads [B, H, N, Cv]) in the dtype and memory order of x, differentiable in x, both bases
        and logit_bias.

    Raises:
        ValueError, TypeError: an argument does not fit, or the backend cannot serve the call.
    """
    check_features(x)
    check_bases("logit_bases", logit_bases, x, channels=x.shape[-1])
    check_bases("value_bases", value_bases, x, channels=None)
    check_same_num_bases(logit_bases, value_bases)
    check_logit_bias(logit_bias, x, logit_bases.shape[-1])
    scale = check_scale(scale)
    check_backend(backend)

    one_head = x.dim() == 3
    if one_head:
        logit_bases, value_bases = logit_bases.unsqueeze(-3), value_bases.unsqueeze(-3)
    return autograd.run(
        EMReconstructFunction,
        as_autocast_would(x),
        logit_bases,
        value_bases,
        logit_bias,
        "BNC" if one_head else "BHNC",
        scale,
        backend,
    )


def responsibilities(
    x: Tensor, bases: Tensor, *, logit_bias: Tensor | None = None, scale: float = 1.0, backend: str | None = None
) -> Tensor:
    """The E-step alone, for maps: how much every position belongs to every base (paper equation 4).

    Args and errors as in `em_reconstruct`. Returns [B, N, K] (with heads [B, H, N, K]) in the dtype of x; the sum
    over K is 1. It is the reconstruction from the identity, so it is differentiable too.
    """
    check_features(x)
    check_bases("bases", bases, x, channels=x.shape[-1])
    num_bases = bases.shape[-1]
    identity = torch.eye(num_bases, dtype=torch.float32, device=x.device)
    if x.dim() == 4:
        identity = identity.expand(x.shape[1], num_bases, num_bases)
    return em_reconstruct(x, bases, identity, logit_bias=logit_bias, scale=scale, backend=backend)


def as_autocast_would(x: Tensor) -> Tensor:
    """`x` as autocast would hand it to a matrix product."""
    if autocast_enabled(x) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        # 8 bits stay as they are where the result is the same
        return x if x.dtype == FLOAT8 and dtype == arithmetic_dtype(FLOAT8) else x.to(dtype)
    return x


def _full_rank(weight: Tensor | None, x: Tensor) -> Tensor | None:
    """`weight`, checked, with a leading dimension of size 1 for every one that it lacks."""
    if x.dim() == 3:
        check_weight(weight, x, (0, 1, 2), "to broadcast to [B, N]")
    else:
        # two dimensions could be images or heads
        check_weight(weight, x, (0, 1, 3), "to be [N] or to broadcast, with three dimensions, to [B, H, N]")
    return None if weight is None else weight[(None,) * (x.dim() - 1 - weight.dim())]
