"""The operators `torch.ops.ema_ops.*`: schema, fake implementation, and the call of the chosen backend.

x comes in one of the layouts of `layout.py`; it is brought to rows inside the bodies, where autograd records
nothing and no view becomes part of a compiled graph. bases are [H, C, K] or [B, H, C, K], weight is [B, N] (with layout
"BHNC" [B, H, N]) where any size may be 1, logit_bias is [K], [B, K] or [B, H, K]. The bodies run with autocast off.
The loop behind a folded convolution and `em_unit` have one head; `em_unit` has no gradient. `em_forward` takes x in
float8_e4m3fn too, and so does `em_backward`, for the gradient of the bases.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .backends import choose, load
from .backends.base import Backend
from .layout import as_own_tensor, as_rows, empty_like, empty_like_order, from_rows
from .plain import is_plain
from .problem import FLOAT8, LoopOptions, Problem, arithmetic_dtype, check_unit, check_weight_values
from .vmap import fold_into_batch

_LOOP = "str layout, int num_iters, int grad_iters, float scale, float eps, str eps_mode"
SCHEMAS = {
    "em_forward": f"(Tensor x, Tensor bases, Tensor? weight, bool moves_bases, {_LOOP}, str? backend)"
    " -> (Tensor y, Tensor bases, Tensor path, Tensor masses, Tensor lengths)",
    "em_attend": f"(Tensor x, Tensor bases, Tensor? weight, bool moves_bases, {_LOOP}, str? backend)"
    " -> (Tensor y, Tensor bases)",
    "em_backward": "(Tensor grad_y, Tensor? grad_bases, Tensor x, Tensor? weight, Tensor bases, Tensor path, "
    f"Tensor masses, Tensor lengths, bool need_bases, {_LOOP}, str? backend) -> (Tensor grad_x, Tensor grad_bases)",
    "em_folded_forward": "(Tensor x, Tensor bases, Tensor? weight, Tensor conv_weight, Tensor conv_bias, "
    f"bool moves_bases, {_LOOP}, str? backend)"
    " -> (Tensor y, Tensor bases, Tensor path, Tensor path_sums, Tensor masses, Tensor lengths)",
    "em_folded_backward": "(Tensor grad_y, Tensor? grad_bases, Tensor x, Tensor? weight, Tensor conv_weight, "
    "Tensor conv_bias, Tensor bases, Tensor path, Tensor path_sums, Tensor masses, Tensor lengths, bool need_bases, "
    f"{_LOOP}, str? backend)"
    " -> (Tensor grad_x, Tensor grad_conv_weight, Tensor grad_conv_bias, Tensor grad_bases)",
    "em_step": "(Tensor x, Tensor bases, Tensor? weight, Tensor? logit_bias, str layout, float scale, str? backend)"
    " -> (Tensor sums, Tensor mass)",
    "em_step_backward": "(Tensor grad_sums, Tensor grad_mass, Tensor x, Tensor bases, Tensor? weight, "
    "Tensor? logit_bias, str layout, float scale, str? backend)"
    " -> (Tensor grad_x, Tensor grad_bases, Tensor grad_logit_bias)",
    "em_reconstruct": "(Tensor x, Tensor logit_bases, Tensor value_bases, Tensor? logit_bias, str layout, float scale, "
    "str? backend) -> Tensor y",
    "em_unit": "(Tensor x, Tensor bases, Tensor? weight, Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2, "
    "str layout, int num_iters, float scale, float eps, str eps_mode, str? backend) -> (Tensor y, Tensor bases)",
    "em_reconstruct_backward": "(Tensor grad_y, Tensor x, Tensor logit_bases, Tensor value_bases, "
    "Tensor? logit_bias, str layout, float scale, str? backend)"
    " -> (Tensor grad_x, Tensor grad_logit_bases, Tensor grad_value_bases, Tensor grad_logit_bias)",
}

_library = torch.library.Library("ema_ops", "DEF")
for _name, _schema in SCHEMAS.items():
    _library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides))


def _implement(body: Callable) -> Callable:
    """Register `body` as the operator of its name, and the rule that folds a vmapped dimension into B.

    What it returns calls the operator: by the dispatcher, or the body alone where nobody else has a say.
    """

    def run(*args: Any) -> Any:
        if autocast_enabled(args[0]):
            with torch.autocast(args[0].device.type, enabled=False):
                outputs = body(*args)
        else:
            outputs = body(*args)
        return as_own_tensor(outputs) if isinstance(outputs, Tensor) else tuple(map(as_own_tensor, outputs))

    name = body.__name__
    operator = getattr(torch.ops.ema_ops, name).default
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_vmap(f"ema_ops::{name}", fold_into_batch(operator), lib=_library)
    return lambda *args: run(*args) if is_plain(args) else operator(*args)


def autocast_enabled(x: Tensor) -> bool:
    """Whether autocast is on for the device of `x`; the meta device knows none."""
    # the common answer, without a look at the device
    if not torch._C._is_any_autocast_enabled():
        return False
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def _fake(body: Callable) -> Callable:
    """Register `body`, called like the operator plus `_fake`, as its fake implementation."""
    name = body.__name__.removesuffix("_fake")
    torch.library.register_fake(f"ema_ops::{name}", body, lib=_library)
    return body


@lru_cache(maxsize=1024)
def _describe(
    layout: str,
    options: LoopOptions,
    dtype: torch.dtype,
    device: torch.device,
    shape: torch.Size,
    strides: tuple[int, ...],
    bases: torch.Size,
    weight: torch.Size | None,
    logit_bias: torch.Size | None,
    value_bases: torch.Size | None,
) -> tuple[Problem, tuple[torch.Size, tuple[int, ...]] | None]:
    """The problem of tensors of such sizes; sizes and strides of the rows, or None where bringing x to rows copies it.

    Tensors without memory go through the same views and checks as others.
    """
    x = torch.empty_strided(shape, strides, dtype=dtype, device="meta")
    rows = as_rows(x, layout, bases[-3])
    others = {"weight": weight, "logit_bias": logit_bias, "value_bases": value_bases}
    problem = Problem.build(
        rows,
        torch.empty(bases, device="meta"),
        **{name: None if sizes is None else torch.empty(sizes, device="meta") for name, sizes in others.items()},
        **options._asdict(),
    )
    is_view = rows.untyped_storage()._cdata == x.untyped_storage()._cdata
    return problem._replace(device=device), (rows.shape, rows.stride()) if is_view else None


class _Call:
    """One call inside a body: rows, problem, and the small arguments expanded to the whole batch."""

    def __init__(
        self,
        layout: str,
        backend: str | None,
        options: LoopOptions,
        x: Tensor,
        bases: Tensor,
        weight: Tensor | None,
        logit_bias: Tensor | None = None,
        value_bases: Tensor | None = None,
    ) -> None:
        self.x, self.layout, shape = x, layout, bases.shape
        self.heads = shape[-3]
        self.problem, self.view = _describe(
            layout, options, x.dtype, x.device, x.shape, x.stride(), shape,
            None if weight is None else weight.shape,
            None if logit_bias is None else logit_bias.shape,
            None if value_bases is None else value_bases.shape,
        )  # fmt: skip
        if weight is not None:
            check_weight_values(weight)
        self.rows = as_rows(x, layout, self.heads) if self.view is None else x.as_strided(*self.view)
        chosen = choose(self.problem, backend)
        # nothing to launch: plain PyTorch knows what a sum over nothing is
        self.kernels: Backend = load("torch") if self.problem.is_empty else chosen

    def readable_rows(self) -> Tensor:
        """The rows as the backend's loop takes them."""
        return self.rows if self.x.dtype != FLOAT8 or self.kernels.reads_float8(self.problem) else self.widened_rows()

    def widened_rows(self) -> Tensor:
        """The rows in the dtype of the problem, in their memory order."""
        if self.rows.dtype == self.problem.dtype:
            return self.rows
        return empty_like_order(self.rows, dtype=self.problem.dtype).copy_(self.rows)

    def as_rows(self, like_x: Tensor) -> Tensor:
        if self.view is not None and like_x.stride() == self.x.stride() and like_x.shape == self.x.shape:
            return like_x.as_strided(*self.view)
        return as_rows(like_x, self.layout, self.heads)

    def from_rows(self, rows: Tensor) -> Tensor:
        return from_rows(rows, self.x, self.layout)

    def expand_bases(self, bases: Tensor) -> Tensor:
        return bases.expand(self.problem.batch, self.heads, *bases.shape[-2:])

    def expand_weight(self, weight: Tensor | None) -> Tensor | None:
        if weight is None:
            return None
        weight = weight.unsqueeze(1) if weight.dim() == 2 else weight
        return weight.to(self.problem.accumulate_dtype).expand(self.rows.shape[:3])

    def expand_bias(self, logit_bias: Tensor | None) -> Tensor | None:
        if logit_bias is None:
            return None
        logit_bias = logit_bias.unsqueeze(1) if logit_bias.dim() == 2 else logit_bias
        return logit_bias.expand(self.problem.batch, self.heads, self.problem.num_bases)

    def as_bias(self, bias: Tensor) -> Tensor:
        return bias.to(self.problem.accumulate_dtype).contiguous()


@_implement
def em_forward(x, bases, weight, moves_bases, layout, num_iters, grad_iters, scale, eps, eps_mode, backend):
    if moves_bases:
        _refuse_recomputation()
    call = _Call(layout, backend, LoopOptions(num_iters, grad_iters, scale, eps, eps_mode), x, bases, weight)
    y, *saved = call.kernels.em_forward(
        call.problem, call.readable_rows(), call.expand_bases(bases), call.expand_weight(weight)
    )
    return call.from_rows(y), *saved


@_fake
def em_forward_fake(x, bases, weight, moves_bases, layout, num_iters, grad_iters, scale, eps, eps_mode, backend):
    sizes, dtype = (x.shape[0], *bases.shape[-3:]), _accumulate_dtype(x)
    per_base = (num_iters, x.shape[0], bases.shape[-3], bases.shape[-1])
    return (
        _empty_like(x, layout),
        x.new_empty(sizes, dtype=dtype),
        x.new_empty(num_iters, *sizes, dtype=dtype),
        x.new_empty(per_base, dtype=dtype),
        x.new_empty(per_base, dtype=dtype),
    )


@_implement
def em_attend(x, bases, weight, moves_bases, layout, num_iters, grad_iters, scale, eps, eps_mode, backend):
    if moves_bases:
        _refuse_recomputation()
    call = _Call(layout, backend, LoopOptions(num_iters, grad_iters, scale, eps, eps_mode), x, bases, weight)
    y, last = call.kernels.em_attend(call.problem, call.readable_rows(), bases, call.expand_weight(weight))
    return call.from_rows(y), last


@_fake
def em_attend_fake(x, bases, weight, moves_bases, layout, *others):
    return _empty_like(x, layout), x.new_empty(x.shape[0], *bases.shape[-3:], dtype=_accumulate_dtype(x))


@_implement
def em_backward(
    grad_y, grad_bases, x, weight, bases, path, masses, lengths, need_bases,
    layout, num_iters, grad_iters, scale, eps, eps_mode, backend,
):  # fmt: skip
    call = _Call(layout, backend, LoopOptions(num_iters, grad_iters, scale, eps, eps_mode), x, bases, weight)
    grad_x, grad_initial = call.kernels.em_backward(
        call.problem, call.as_rows(grad_y), grad_bases, call.widened_rows(), call.expand_weight(weight),
        bases, path, masses, lengths, need_bases,
    )  # fmt: skip
    return call.from_rows(grad_x), _no_bases(bases) if grad_initial is None else grad_initial


@_fake
def em_backward_fake(
    grad_y, grad_bases, x, weight, bases, path, masses, lengths, need_bases,
    layout, num_iters, grad_iters, scale, eps, eps_mode, backend,
):  # fmt: skip
    return _empty_like(x, layout), bases.new_empty(bases.shape) if need_bases else _no_bases(bases)


@_implement
def em_folded_forward(
    x, bases, weight, conv_weight, conv_bias, moves_bases,
    layout, num_iters, grad_iters, scale, eps, eps_mode, backend,
):  # fmt: skip
    if moves_bases:
        _refuse_recomputation()
    check_unit(x, bases, conv_weight=conv_weight, conv_bias=conv_bias)
    call = _Call(layout, backend, LoopOptions(num_iters, grad_iters, scale, eps, eps_mode), x, bases, weight)
    y, *saved = call.kernels.em_folded_forward(
        call.problem, call.rows, call.expand_bases(bases), call.expand_weight(weight),
        conv_weight.contiguous(), call.as_bias(conv_bias),
    )  # fmt: skip
    return call.from_rows(y), *saved


@_fake
def em_folded_forward_fake(x, bases, weight, conv_weight, conv_bias, *others):
    y, last, path, *small = em_forward_fake(x, bases, weight, *others)
    return y, last, path, torch.empty_like(path), *small


@_implement
def em_folded_backward(
    grad_y, grad_bases, x, weight, conv_weight, conv_bias, bases, path, path_sums, masses, lengths, need_bases,
    layout, num_iters, grad_iters, scale, eps, eps_mode, backend,
):  # fmt: skip
    call = _Call(layout, backend, LoopOptions(num_iters, grad_iters, scale, eps, eps_mode), x, bases, weight)
    grad_x, grad_conv_weight, grad_conv_bias, grad_initial = call.kernels.em_folded_backward(
        call.problem, call.as_rows(grad_y), grad_bases, call.rows, call.expand_weight(weight),
        conv_weight.contiguous(), call.as_bias(conv_bias), bases, path, path_sums, masses, lengths, need_bases,
    )  # fmt: skip
    grad_initial = _no_bases(bases) if grad_initial is None else grad_initial
    return call.from_rows(grad_x), grad_conv_weight, grad_conv_bias, grad_initial


@_fake
def em_folded_backward_fake(
    grad_y, grad_bases, x, weight, conv_weight, conv_bias, bases, path, path_sums, masses, lengths, need_bases,
    layout, *others,
):  # fmt: skip
    convolution = (bases.new_empty(tensor.shape) for tensor in (conv_weight, conv_bias))
    return _empty_like(x, layout), *convolution, bases.new_empty(bases.shape) if need_bases else _no_bases(bases)


@_implement
def em_step(x, bases, weight, logit_bias, layout, scale, backend):
    call = _Call(layout, backend, LoopOptions(scale=scale), x, bases, weight, logit_bias)
    return call.kernels.em_step(
        call.problem, call.rows, call.expand_bases(bases), call.expand_weight(weight), call.expand_bias(logit_bias)
    )


@_fake
def em_step_fake(x, bases, weight, logit_bias, layout, scale, backend):
    dtype = _accumulate_dtype(x)
    sums = x.new_empty(x.shape[0], *bases.shape[-3:], dtype=dtype)
    return sums, x.new_empty(x.shape[0], bases.shape[-3], bases.shape[-1], dtype=dtype)


@_implement
def em_step_backward(grad_sums, grad_mass, x, bases, weight, logit_bias, layout, scale, backend):
    call = _Call(layout, backend, LoopOptions(scale=scale), x, bases, weight, logit_bias)
    grad_x, *small = call.kernels.em_step_backward(
        call.problem, grad_sums, grad_mass, call.rows, call.expand_bases(bases),
        call.expand_weight(weight), call.expand_bias(logit_bias),
    )  # fmt: skip
    return call.from_rows(grad_x), *small


@_fake
def em_step_backward_fake(grad_sums, grad_mass, x, bases, weight, logit_bias, layout, scale, backend):
    return _empty_like(x, layout), grad_sums.new_empty(grad_sums.shape), grad_mass.new_empty(grad_mass.shape)


@_implement
def em_reconstruct(x, logit_bases, value_bases, logit_bias, layout, scale, backend):
    call = _Call(layout, backend, LoopOptions(scale=scale), x, logit_bases, None, logit_bias, value_bases)
    y = call.kernels.em_reconstruct(
        call.problem, call.rows, call.expand_bases(logit_bases), call.expand_bases(value_bases),
        call.expand_bias(logit_bias),
    )  # fmt: skip
    return call.from_rows(y)


@_fake
def em_reconstruct_fake(x, logit_bases, value_bases, logit_bias, layout, scale, backend):
    heads = 1 if layout == "BHNC" else value_bases.shape[-3]
    return empty_like(x, layout, heads * value_bases.shape[-2], x.dtype)


@_implement
def em_reconstruct_backward(grad_y, x, logit_bases, value_bases, logit_bias, layout, scale, backend):
    call = _Call(layout, backend, LoopOptions(scale=scale), x, logit_bases, None, logit_bias, value_bases)
    grad_x, *small = call.kernels.em_reconstruct_backward(
        call.problem, call.as_rows(grad_y), call.rows, call.expand_bases(logit_bases),
        call.expand_bases(value_bases), call.expand_bias(logit_bias),
    )  # fmt: skip
    return call.from_rows(grad_x), *small


@_fake
def em_reconstruct_backward_fake(grad_y, x, logit_bases, value_bases, logit_bias, layout, scale, backend):
    dtype, batch = _accumulate_dtype(x), x.shape[0]
    return (
        _empty_like(x, layout),
        x.new_empty(batch, *logit_bases.shape[-3:], dtype=dtype),
        x.new_empty(batch, *value_bases.shape[-3:], dtype=dtype),
        x.new_empty(batch, logit_bases.shape[-3], logit_bases.shape[-1], dtype=dtype),
    )


@_implement
def em_unit(
    x, bases, weight, weight1, bias1, weight2, bias2, layout, num_iters, scale, eps, eps_mode, backend
):  # fmt: skip
    check_unit(x, bases, weight1=weight1, bias1=bias1, weight2=weight2, bias2=bias2)
    options = LoopOptions(num_iters, scale=scale, eps=eps, eps_mode=eps_mode, unit=True)
    call = _Call(layout, backend, options, x, bases, weight)
    y, last = call.kernels.em_unit(
        call.problem, call.rows, call.expand_bases(bases), call.expand_weight(weight),
        weight1.to(x.dtype).contiguous(), call.as_bias(bias1), weight2.to(x.dtype).contiguous(), call.as_bias(bias2),
    )  # fmt: skip
    return call.from_rows(y), last


@_fake
def em_unit_fake(
    x, bases, weight, weight1, bias1, weight2, bias2, layout, num_iters, scale, eps, eps_mode, backend
):  # fmt: skip
    return _empty_like(x, layout), x.new_empty(x.shape[0], *bases.shape[-3:], dtype=_accumulate_dtype(x))


def _refuse_recomputation() -> None:
    """Raise RuntimeError inside backward, where a forward can only be the recomputation of an earlier one.

    It stands in the operator's body, which compiled graphs run too.
    """
    if torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            "EMAttention is recomputed inside backward (activation checkpointing), but its running bases have moved "
            "since: the gradient would be wrong and they would move twice. Pass update_bases=False to the layer inside "
            "the checkpoint and call update_running_bases(bases) after backward."
        )


def _empty_like(x: Tensor, layout: str) -> Tensor:
    return empty_like(x, layout, x.shape[1 if layout == "BCN" else -1], arithmetic_dtype(x.dtype))


def _accumulate_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _no_bases(bases: Tensor) -> Tensor:
    """What stands for a gradient of the initial bases that nobody asked for: [B, H, 0, K]."""
    batch, heads, _, num_bases = bases.shape
    return bases.new_empty(batch, heads, 0, num_bases)
