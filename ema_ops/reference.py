"""EM attention as on paper, in plain differentiable PyTorch. Everything else in this package is judged by it.

Li et al., "Expectation-Maximization Attention Networks for Semantic Segmentation", ICCV 2019, section 3.
Shapes: features x [.., N, C], bases [.., C, K], responsibilities [.., N, K], weight [.., N]. Run it in float64
to judge others. A quotient whose denominator is 0 (possible with eps = 0 only) is taken as 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


def e_step(x: Tensor, bases: Tensor, scale: float = 1.0, logit_bias: Tensor | None = None) -> Tensor:
    """Responsibilities [.., N, K]: softmax over K of scale * x bases + logit_bias (paper equation 4)."""
    logits = scale * (x @ bases)
    if logit_bias is not None:
        logits = logits + logit_bias.unsqueeze(-2)
    return torch.softmax(logits, dim=-1)


def weighted_sums(x: Tensor, responsibilities: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weighted sums of the features [.., C, K] and mass [.., K] of every base: the M-step before any division."""
    if weight is not None:
        responsibilities = responsibilities * weight.unsqueeze(-1)
    return x.transpose(-1, -2) @ responsibilities, responsibilities.sum(dim=-2)


def normalize(sums: Tensor, mass: Tensor, eps: float = 1e-6, eps_mode: str = "add") -> Tensor:
    """Bases [.., C, K]: the mean features of every base (paper equation 5), scaled to length one over C."""
    means = _divide(sums, mass.unsqueeze(-2), eps, eps_mode)
    return _divide(means, _length(means), eps, eps_mode)


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
) -> tuple[Tensor, Tensor]:
    """The whole loop: features rebuilt from the bases [.., N, C] and the last bases [.., C, K].

    The reconstruction (paper equation 6) takes the last responsibilities with the last bases. The gradient flows
    through the last `grad_iters` iterations: None for all, 0 for none (both results are then constants).
    """
    grad_iters = _checked(grad_iters, num_iters)
    constant_x = x.detach()
    for iteration in range(num_iters):
        if iteration >= num_iters - grad_iters:
            features = x
        else:
            features, bases = constant_x, bases.detach()
        responsibilities = e_step(features, bases, scale)
        sums, mass = weighted_sums(features, responsibilities, weight)
        bases = normalize(sums, mass, eps, eps_mode)
    return responsibilities @ bases.transpose(-1, -2), bases


def em_attention_backward(
    x: Tensor,
    bases: Tensor,
    grad_y: Tensor,
    grad_bases: Tensor | None = None,
    *,
    num_iters: int = 3,
    scale: float = 1.0,
    weight: Tensor | None = None,
    grad_iters: int | None = None,
    eps: float = 1e-6,
    eps_mode: str = "add",
) -> tuple[Tensor, Tensor | None]:
    """The gradient of `em_attention` written out: dL/dx [.., N, C] and dL/dbases [.., C, K].

    The second is None when the gradient stops before the initial bases (`grad_iters` < `num_iters`). Only x, the
    bases of every iteration, the masses and the lengths are used; responsibilities are computed again.
    """
    grad_iters = _checked(grad_iters, num_iters)
    grad_x = torch.zeros_like(x)
    if grad_iters == 0:
        return grad_x, None

    path, masses, lengths = [bases], [], []
    for _ in range(num_iters):
        sums, mass = weighted_sums(x, e_step(x, path[-1], scale), weight)
        means = _divide(sums, mass.unsqueeze(-2), eps, eps_mode)
        masses.append(mass.unsqueeze(-2))
        lengths.append(_length(means))
        path.append(_divide(means, lengths[-1], eps, eps_mode))

    last = e_step(x, path[-2], scale)
    grad_m = grad_y.transpose(-1, -2) @ last
    if grad_bases is not None:
        grad_m = grad_m + grad_bases
    for t in range(num_iters, num_iters - grad_iters, -1):
        z, m, mass, length = e_step(x, path[t - 1], scale), path[t], masses[t - 1], lengths[t - 1]
        grad_sums, grad_mass = _normalize_backward(grad_m, m, mass, length, eps, eps_mode)
        grad_z = x @ grad_sums + grad_mass
        zw = z
        if weight is not None:
            grad_z, zw = grad_z * weight.unsqueeze(-1), z * weight.unsqueeze(-1)
        if t == num_iters:
            grad_z = grad_z + grad_y @ m
        grad_logits = scale * z * (grad_z - (z * grad_z).sum(dim=-1, keepdim=True))
        grad_x = grad_x + zw @ grad_sums.transpose(-1, -2) + grad_logits @ path[t - 1].transpose(-1, -2)
        grad_m = x.transpose(-1, -2) @ grad_logits
    return grad_x, grad_m if grad_iters == num_iters else None


def _normalize_backward(
    grad_m: Tensor, m: Tensor, mass: Tensor, length: Tensor, eps: float, eps_mode: str
) -> tuple[Tensor, Tensor]:
    """Gradients of the plain sums [.., C, K] and of the mass [.., 1, K] from that of the normalised bases."""
    along = (m * grad_m).sum(dim=-2, keepdim=True)
    moves = length > (0 if eps_mode == "add" else eps)
    radial = torch.where(moves, along / torch.where(moves, length, 1), 0)
    grad_means = _divide(grad_m, length, eps, eps_mode) - m * radial
    grad_sums = _divide(grad_means, mass, eps, eps_mode)
    stretch = _denominator(length, eps, eps_mode)
    means_dot_grad = torch.where(moves, along * (stretch - length) / stretch, along)
    grad_mass = -_divide(means_dot_grad, mass, eps, eps_mode)
    if eps_mode == "max":
        grad_mass = torch.where(mass > eps, grad_mass, 0)
    return grad_sums, grad_mass


def _denominator(value: Tensor, eps: float, eps_mode: str) -> Tensor:
    return value + eps if eps_mode == "add" else value.clamp_min(eps)


def _divide(numerator: Tensor, value: Tensor, eps: float, eps_mode: str) -> Tensor:
    denominator = _denominator(value, eps, eps_mode)
    return torch.where(denominator > 0, numerator / torch.where(denominator > 0, denominator, 1), 0)


def _length(means: Tensor) -> Tensor:
    """L2 norm over C, [.., 1, K]; its gradient at 0 is 0 and not NaN."""
    return torch.linalg.vector_norm(means, dim=-2, keepdim=True)


def _checked(grad_iters: int | None, num_iters: int) -> int:
    """`grad_iters`, of None all iterations. Raises ValueError."""
    if num_iters < 1:
        raise ValueError(f"num_iters is {num_iters}: expected at least 1")
    if grad_iters is not None and not 0 <= grad_iters <= num_iters:
        raise ValueError(f"grad_iters is {grad_iters}: expected 0 to num_iters = {num_iters}, or None for all")
    return num_iters if grad_iters is None else grad_iters
