"""The "torch" backend: the loop and its gradient in plain PyTorch, on any device and dtype.

No graph is recorded inside an operator, so the gradient is written out (docs/mathematics.md). 16-bit features are
computed in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..layout import empty_like_order
from ..problem import Problem
from .base import Backend


class EagerBackend(Backend):
    """See `Backend` for the shapes."""

    name = "torch"

    def unavailable(self) -> None:
        return None

    def refuses(self, problem: Problem) -> None:
        return None

    def em_forward(self, problem, x, bases, weight):
        dtype, steps = problem.accumulate_dtype, problem.num_iters
        path = x.new_empty(steps, problem.batch, problem.heads, problem.channels, problem.num_bases, dtype=dtype)
        mass = x.new_empty(steps, problem.batch, problem.heads, problem.num_bases, dtype=dtype)
        length = torch.empty_like(mass)
        features = as_features(problem, x)
        m = path[0].copy_(bases)
        for t in range(steps):
            z = responsibilities(problem, features, m, None)
            zw = weighted(z, weight)
            torch.sum(zw, -2, out=mass[t])
            means = (features.transpose(-1, -2) @ zw).mul_(inverse(problem, mass[t]).unsqueeze(-2))
            # torch.linalg.vector_norm over a strided dimension is several times slower
            torch.sum(means.square(), -2, out=length[t]).sqrt_()
            scale = inverse(problem, length[t]).unsqueeze(-2)
            m = torch.mul(means, scale, out=path[t + 1]) if t + 1 < steps else means.mul_(scale)
        return product_in_order(problem, x, z, m), m, path, mass, length

    def em_backward(self, problem, grad_y, grad_bases, x, weight, bases, path, mass, length, need_bases):
        steps, stop = problem.num_iters, problem.num_iters - problem.grad_iters
        features, grad_out = as_features(problem, x), as_features(problem, grad_y)
        left, right = [], []
        for t in range(steps, stop, -1):
            z = responsibilities(problem, features, path[t - 1], None)
            if t == steps:
                m, grad_m = bases, grad_out.transpose(-1, -2) @ z
                if grad_bases is not None:
                    grad_m += grad_bases
            else:
                m = path[t]
            grad_sums, grad_mass = normalize_backward(problem, grad_m, m, mass[t - 1], length[t - 1])
            grad_z = (features @ grad_sums).add_(grad_mass.unsqueeze(-2))
            grad_z = grad_z if weight is None else grad_z.mul_(weight.unsqueeze(-1))
            if t == steps:
                grad_z += grad_out @ bases
            grad_product, _ = product_backward(problem, z, grad_z)
            left += [weighted(z, weight), grad_product]
            right += [grad_sums, path[t - 1]]
            if t > stop + 1 or need_bases:
                grad_m = features.transpose(-1, -2) @ grad_product
        # one product of rank 2 * grad_iters * K writes grad_x once
        grad_x = product_in_order(problem, x, torch.cat(left, -1), torch.cat(right, -1), is_gradient=True)
        return grad_x, grad_m if need_bases else None

    def em_step(self, problem, x, bases, weight, logit_bias):
        features = as_features(problem, x)
        zw = weighted(responsibilities(problem, features, bases, logit_bias), weight)
        return features.transpose(-1, -2) @ zw, zw.sum(-2)

    def em_step_backward(self, problem, grad_sums, grad_mass, x, bases, weight, logit_bias):
        features = as_features(problem, x)
        bases, grad_sums = bases.to(features.dtype), grad_sums.to(features.dtype)
        z = responsibilities(problem, features, bases, logit_bias)
        grad_z = weighted((features @ grad_sums).add_(grad_mass.unsqueeze(-2)), weight)
        grad_product, grad_bias = product_backward(problem, z, grad_z)
        left, right = torch.cat([weighted(z, weight), grad_product], -1), torch.cat([grad_sums, bases], -1)
        grad_x = product_in_order(problem, x, left, right, is_gradient=True)
        return grad_x, features.transpose(-1, -2) @ grad_product, grad_bias

    def em_reconstruct(self, problem, x, logit_bases, value_bases, logit_bias):
        z = responsibilities(problem, as_features(problem, x), logit_bases, logit_bias)
        return product_in_order(problem, x, z, value_bases.to(z.dtype))

    def em_reconstruct_backward(self, problem, grad_y, x, logit_bases, value_bases, logit_bias):
        features, grad_out = as_features(problem, x), as_features(problem, grad_y)
        logit_bases = logit_bases.to(features.dtype)
        z = responsibilities(problem, features, logit_bases, logit_bias)
        grad_z = grad_out @ value_bases.to(features.dtype)
        grad_product, grad_bias = product_backward(problem, z, grad_z)
        grad_logit_bases = features.transpose(-1, -2) @ grad_product
        grad_value_bases = grad_out.transpose(-1, -2) @ z
        grad_x = product_in_order(problem, x, grad_product, logit_bases, is_gradient=True)
        return grad_x, grad_logit_bases, grad_value_bases, grad_bias


BACKEND = EagerBackend()


def as_features(problem: Problem, x: Tensor) -> Tensor:
    """`x` as the products want it: in the accumulate dtype, with mergeable batch and heads."""
    features = x.to(problem.accumulate_dtype)
    return features.contiguous() if problem.order == "BNHC" else features


def responsibilities(problem: Problem, features: Tensor, bases: Tensor, logit_bias: Tensor | None) -> Tensor:
    """E-step [B, H, N, K]; the temperature goes into the small bases."""
    bases = bases.to(features.dtype)
    logits = features @ (bases if problem.scale == 1 else problem.scale * bases)
    if logit_bias is not None:
        logits += logit_bias.unsqueeze(-2)
    return torch.softmax(logits, dim=-1)


def weighted(z: Tensor, weight: Tensor | None) -> Tensor:
    """Responsibilities times the weight of their position."""
    return z if weight is None else z * weight.unsqueeze(-1)


def inverse(problem: Problem, value: Tensor) -> Tensor:
    """1 / (eps + value) or 1 / max(eps, value); 0 where that would divide by 0, which takes eps = 0."""
    denominator = value + problem.eps if problem.eps_mode == "add" else value.clamp_min(problem.eps)
    quotient = denominator.reciprocal()
    return quotient if problem.eps > 0 else quotient.masked_fill_(denominator == 0, 0)


def normalize_backward(
    problem: Problem, grad_m: Tensor, m: Tensor, mass: Tensor, length: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the undivided sums [B, H, C, K] and of the mass [B, H, K] from that of the bases."""
    along = (m * grad_m).sum(-2)
    add = problem.eps_mode == "add"
    inverse_mass, inverse_length = inverse(problem, mass), inverse(problem, length)
    # a dead base (length 0) has no direction to lose
    radial = torch.where(length > (0 if add else problem.eps), along / length, 0)
    grad_sums = (grad_m * inverse_length.unsqueeze(-2) - m * radial.unsqueeze(-2)) * inverse_mass.unsqueeze(-2)
    # after the L2 norm the mass matters only through eps: written so that nothing cancels
    if add:
        return grad_sums, -along * problem.eps * inverse_length * inverse_mass
    only_mass_moves = (length <= problem.eps) & (mass > problem.eps)
    return grad_sums, torch.where(only_mass_moves, -along * inverse_mass, 0)


def product_backward(problem: Problem, z: Tensor, grad_z: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax backward: gradient of the product x bases [B, H, N, K] and of the logit bias [B, H, K]."""
    grad_logits = torch.ops.aten._softmax_backward_data(grad_z, z, -1, z.dtype)
    grad_bias = grad_logits.sum(-2)
    return (grad_logits if problem.scale == 1 else grad_logits.mul_(problem.scale)), grad_bias


def product_in_order(problem: Problem, x: Tensor, left: Tensor, right: Tensor, *, is_gradient: bool = False) -> Tensor:
    """left [B, H, N, R] times right [B, H, C, R] transposed, in the memory order and dtype of `x`."""
    columns = problem.order == "BHCN"
    product = right @ left.transpose(-1, -2) if columns else left @ right.transpose(-1, -2)
    if is_gradient and x.dtype == torch.float16:
        # where all features are 0 the gradient is of size 1 / eps, more than float16 holds
        product.clamp_(-torch.finfo(x.dtype).max, torch.finfo(x.dtype).max)
    if columns:
        return product.to(x.dtype).transpose(-1, -2)
    return product.to(x.dtype) if problem.order == "BHNC" else empty_like_order(x, right.shape[-2]).copy_(product)
