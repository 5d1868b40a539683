"""The operators `torch.ops.ema_ops.*`: schema, fake implementation, and the call of the chosen backend.

Shapes are canonical here: x [B, H, N, C], bases [H, C, K] or [B, H, C, K], weight [b, h, n] where each size may
be 1, logit_bias [K] or [B, h, K]. The bodies run with autocast off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .backends import choose, load
from .backends.base import Backend
from .problem import Problem, empty_like_order
from .vmap import fold_into_batch

_LOOP = "int num_iters, int grad_iters, float scale, float eps, str eps_mode"
SCHEMAS = {
    "em_forward": f"(Tensor x, Tensor bases, Tensor? weight, {_LOOP}, str? backend)"
    " -> (Tensor y, Tensor bases, Tensor path, Tensor masses, Tensor lengths)",
    "em_backward": "(Tensor grad_y, Tensor? grad_bases, Tensor x, Tensor? weight, Tensor bases, Tensor path, "
    f"Tensor masses, Tensor lengths, bool need_bases, {_LOOP}, str? backend) -> (Tensor grad_x, Tensor grad_bases)",
    "em_step": "(Tensor x, Tensor bases, Tensor? weight, Tensor? logit_bias, float scale, str? backend)"
    " -> (Tensor sums, Tensor mass)",
    "em_step_backward": "(Tensor grad_sums, Tensor grad_mass, Tensor x, Tensor bases, Tensor? weight, "
    "Tensor? logit_bias, float scale, str? backend) -> (Tensor grad_x, Tensor grad_bases, Tensor grad_logit_bias)",
    "em_reconstruct": "(Tensor x, Tensor logit_bases, Tensor value_bases, Tensor? logit_bias, float scale, "
    "str? backend) -> Tensor y",
    "em_reconstruct_backward": "(Tensor grad_y, Tensor x, Tensor logit_bases, Tensor value_bases, "
    "Tensor? logit_bias, float scale, str? backend)"
    " -> (Tensor grad_x, Tensor grad_logit_bases, Tensor grad_value_bases, Tensor grad_logit_bias)",
}

_library = torch.library.Library("ema_ops", "DEF")
for _name, _schema in SCHEMAS.items():
    _library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides))


def _implement(body: Callable) -> Callable:
    """Register `body` as the operator of its name, and the rule that folds a vmapped dimension into B."""

    def without_autocast(*args: Any) -> Any:
        device_type = args[0].device.type
        if not torch.is_autocast_enabled(device_type):
            return body(*args)
        with torch.autocast(device_type, enabled=False):
            return body(*args)

    name = body.__name__
    _library.impl(name, without_autocast, "CompositeExplicitAutograd")
    torch.library.register_vmap(
        f"ema_ops::{name}", fold_into_batch(getattr(torch.ops.ema_ops, name).default), lib=_library
    )
    return body


def _fake(body: Callable) -> Callable:
    """Register `body`, called like the operator plus `_fake`, as its fake implementation."""
    name = body.__name__.removesuffix("_fake")
    torch.library.register_fake(f"ema_ops::{name}", body, lib=_library)
    return body


def _select(problem: Problem, backend: str | None) -> Backend:
    chosen = choose(problem, backend)
    # nothing to launch: plain PyTorch knows what a sum over nothing is
    return load("torch") if problem.is_empty else chosen


def _expand(bases: Tensor, problem: Problem) -> Tensor:
    return bases.expand(problem.batch, problem.heads, *bases.shape[-2:])


def _expand_weight(weight: Tensor | None, problem: Problem) -> Tensor | None:
    if weight is None:
        return None
    return weight.to(problem.accumulate_dtype).expand(problem.batch, problem.heads, problem.positions)


def _expand_bias(logit_bias: Tensor | None, problem: Problem) -> Tensor | None:
    return None if logit_bias is None else logit_bias.expand(problem.batch, problem.heads, problem.num_bases)


@_implement
def em_forward(x, bases, weight, num_iters, grad_iters, scale, eps, eps_mode, backend):
    problem = Problem.build(
        x, bases, weight=weight, num_iters=num_iters, grad_iters=grad_iters, scale=scale, eps=eps, eps_mode=eps_mode
    )
    kernels = _select(problem, backend)
    return kernels.em_forward(problem, x, _expand(bases, problem), _expand_weight(weight, problem))


@_fake
def em_forward_fake(x, bases, weight, num_iters, grad_iters, scale, eps, eps_mode, backend):
    sizes, dtype = (x.shape[0], *bases.shape[-3:]), _accumulate_dtype(x)
    per_base = (num_iters, x.shape[0], x.shape[1], bases.shape[-1])
    return (
        empty_like_order(x),
        x.new_empty(sizes, dtype=dtype),
        x.new_empty(num_iters, *sizes, dtype=dtype),
        x.new_empty(per_base, dtype=dtype),
        x.new_empty(per_base, dtype=dtype),
    )


@_implement
def em_backward(
    grad_y,
    grad_bases,
    x,
    weight,
    bases,
    path,
    masses,
    lengths,
    need_bases,
    num_iters,
    grad_iters,
    scale,
    eps,
    eps_mode,
    backend,
):
    problem = Problem.build(
        x, bases, weight=weight, num_iters=num_iters, grad_iters=grad_iters, scale=scale, eps=eps, eps_mode=eps_mode
    )
    kernels = _select(problem, backend)
    grad_x, grad_initial = kernels.em_backward(
        problem, grad_y, grad_bases, x, _expand_weight(weight, problem), bases, path, masses, lengths, need_bases
    )
    return grad_x, _no_bases(bases) if grad_initial is None else grad_initial


@_fake
def em_backward_fake(
    grad_y,
    grad_bases,
    x,
    weight,
    bases,
    path,
    masses,
    lengths,
    need_bases,
    num_iters,
    grad_iters,
    scale,
    eps,
    eps_mode,
    backend,
):
    return empty_like_order(x), bases.new_empty(bases.shape) if need_bases else _no_bases(bases)


@_implement
def em_step(x, bases, weight, logit_bias, scale, backend):
    problem = Problem.build(x, bases, weight=weight, logit_bias=logit_bias, scale=scale)
    kernels = _select(problem, backend)
    weight, logit_bias = _expand_weight(weight, problem), _expand_bias(logit_bias, problem)
    return kernels.em_step(problem, x, _expand(bases, problem), weight, logit_bias)


@_fake
def em_step_fake(x, bases, weight, logit_bias, scale, backend):
    dtype = _accumulate_dtype(x)
    sums = x.new_empty(x.shape[0], *bases.shape[-3:], dtype=dtype)
    return sums, x.new_empty(x.shape[0], x.shape[1], bases.shape[-1], dtype=dtype)


@_implement
def em_step_backward(grad_sums, grad_mass, x, bases, weight, logit_bias, scale, backend):
    problem = Problem.build(x, bases, weight=weight, logit_bias=logit_bias, scale=scale)
    kernels = _select(problem, backend)
    weight, logit_bias = _expand_weight(weight, problem), _expand_bias(logit_bias, problem)
    return kernels.em_step_backward(problem, grad_sums, grad_mass, x, _expand(bases, problem), weight, logit_bias)


@_fake
def em_step_backward_fake(grad_sums, grad_mass, x, bases, weight, logit_bias, scale, backend):
    return empty_like_order(x), torch.empty_like(grad_sums), torch.empty_like(grad_mass)


@_implement
def em_reconstruct(x, logit_bases, value_bases, logit_bias, scale, backend):
    problem = Problem.build(x, logit_bases, value_bases=value_bases, logit_bias=logit_bias, scale=scale)
    kernels = _select(problem, backend)
    logit_bases, value_bases = _expand(logit_bases, problem), _expand(value_bases, problem)
    return kernels.em_reconstruct(problem, x, logit_bases, value_bases, _expand_bias(logit_bias, problem))


@_fake
def em_reconstruct_fake(x, logit_bases, value_bases, logit_bias, scale, backend):
    return empty_like_order(x, value_bases.shape[-2])


@_implement
def em_reconstruct_backward(grad_y, x, logit_bases, value_bases, logit_bias, scale, backend):
    problem = Problem.build(x, logit_bases, value_bases=value_bases, logit_bias=logit_bias, scale=scale)
    kernels = _select(problem, backend)
    logit_bases, value_bases = _expand(logit_bases, problem), _expand(value_bases, problem)
    logit_bias = _expand_bias(logit_bias, problem)
    return kernels.em_reconstruct_backward(problem, grad_y, x, logit_bases, value_bases, logit_bias)


@_fake
def em_reconstruct_backward_fake(grad_y, x, logit_bases, value_bases, logit_bias, scale, backend):
    dtype, batch = _accumulate_dtype(x), x.shape[0]
    return (
        empty_like_order(x),
        x.new_empty(batch, *logit_bases.shape[-3:], dtype=dtype),
        x.new_empty(batch, *value_bases.shape[-3:], dtype=dtype),
        x.new_empty(batch, x.shape[1], logit_bases.shape[-1], dtype=dtype),
    )


def _accumulate_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _no_bases(bases: Tensor) -> Tensor:
    """What stands for a gradient of the initial bases that nobody asked for: [B, H, 0, K]."""
    return bases.new_empty(bases.shape[0], bases.shape[1], 0, bases.shape[3])
