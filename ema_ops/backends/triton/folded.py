"""The loop behind a folded convolution: the kernels of the loop on x, the convolution on bases and sums by torch."""

from __future__ import annotations

import torch
from torch import Tensor

from ...problem import Problem
from ..convolution import convolution_gradient, convolved_sums
from .backward import Products, SumsGradient, e_step_backward, normalize_backward, rows_of, total
from .forward import Features, Weights, dense_bias, e_step, empty_responsibilities, iterate, m_step, reconstruct
from .plan import dense_matrices
from .reduction import Partials


def em_folded_forward(
    problem: Problem, x: Tensor, bases: Tensor, weight: Tensor | None, conv_weight: Tensor, conv_bias: Tensor
) -> tuple[Tensor, ...]:
    """See `Backend.em_folded_forward`."""
    sizes = (problem.num_iters, problem.batch, 1, problem.channels, problem.num_bases)
    path, sums = (torch.empty(sizes, dtype=torch.float32, device=problem.device) for _ in range(2))
    mass, length = (torch.empty_like(path[..., 0, :]) for _ in range(2))
    last, conv_weight = torch.empty_like(path[0]), conv_weight.float()
    path[0].copy_(bases)
    features, weights = Features.of(problem, x), Weights.of(problem, weight)
    z = empty_responsibilities(problem)
    for t in range(problem.num_iters):
        is_last = t + 1 == problem.num_iters
        logit_bases, logit_bias = conv_weight.mT @ path[t], dense_bias(problem.scale * (conv_bias @ path[t]))
        partials = iterate(problem, features, dense_matrices(logit_bases), weights, logit_bias, z if is_last else None)
        partials.add(sums[t], mass[t])
        slot = as_slot(convolved_sums(conv_weight, conv_bias, sums[t], mass[t]))
        Partials(slot, mass[t], None).normalize(problem, last if is_last else path[t + 1], mass[t], length[t])
    return reconstruct(problem, x, z, last), last, path, sums, mass, length


def em_folded_backward(
    problem: Problem,
    grad_y: Tensor,
    grad_bases: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor,
    bases: Tensor,
    path: Tensor,
    sums: Tensor,
    mass: Tensor,
    length: Tensor,
    need_bases: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """See `Backend.em_folded_backward`."""
    stop, conv_weight = problem.num_iters - problem.grad_iters, conv_weight.float()
    features, grads = Features.of(problem, x), Features.of(problem, grad_y)
    products, of_sums = Products.empty(problem, 2 * problem.grad_iters), SumsGradient.empty(problem)
    logit_bases, logit_bias = conv_weight.mT @ path[stop:], problem.scale * (conv_bias @ path[stop:])
    rows_of(problem, logit_bases, problem.scale, out=products.right[1::2])
    e_step(problem, features, dense_matrices(logit_bases[-1]), dense_bias(logit_bias[-1]), products.left[-2])
    slots, factor, m = m_step(problem, grads, products.left[-2]).sums, 1.0, bases
    values: tuple[Features, Tensor] | None = (grads, rows_of(problem, bases))
    grad_sums, logit_sums = torch.empty_like(path[stop:]), torch.empty_like(path[stop:])
    logit_mass = torch.empty_like(mass[stop:])
    rows = torch.empty(problem.batch, problem.num_bases, problem.channels, dtype=torch.float32, device=problem.device)
    for t in range(problem.num_iters - 1, stop - 1, -1):
        i = t - stop
        (z, grad_logits), (sums_rows, logit_rows) = products.left[2 * i : 2 * i + 2], products.right[2 * i : 2 * i + 2]
        normalize_backward(problem, slots, factor, grad_bases, (m, mass[t], length[t]), rows, of_sums)
        torch.mul(rows.mT, of_sums.powers, out=grad_sums[i].squeeze(1))
        of_sums.mass.add_(conv_bias @ grad_sums[i])
        normalize_backward(problem, as_slot(conv_weight.mT @ grad_sums[i]), 1.0, None, None, sums_rows, of_sums)
        e_step_backward(
            problem,
            features,
            logit_rows,
            dense_bias(logit_bias[i]),
            (sums_rows, of_sums),
            weight,
            values,
            z,
            grad_logits,
        )
        logit_sums[i], of_bias = total(problem, m_step(problem, features, grad_logits), problem.scale)
        torch.mul(of_bias, problem.scale, out=logit_mass[i])
        if i > 0 or need_bases:
            slots = as_slot(convolved_sums(conv_weight, conv_bias, logit_sums[i], logit_mass[i]))
        m, values, grad_bases = path[t], None, None
    grad_initial = slots.mT.contiguous() if need_bases else None
    gradients = convolution_gradient(
        problem, (*grad_sums, *path[stop:]), (*sums[stop:], *logit_sums), (*mass[stop:], *logit_mass), rounded=True
    )
    return products.add(problem, x), *gradients, grad_initial


def as_slot(matrices: Tensor) -> Tensor:
    """[B, 1, C, K] as the only slot of sums of every image, [B, 1, K, C]."""
    return matrices.mT.contiguous()
