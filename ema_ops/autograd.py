"""The gradient of the operators, as `torch.autograd.Function`s and registered on the operators themselves.

Backward reads the features and what the operator returned, never the caller's bases: those may be a running
average that has moved since.
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

from . import ops
from .plain import VALUES, is_plain
from .problem import arithmetic_dtype


def run(function, *arguments):
    """`function.apply`, with as few layers of Python as it takes: where no derivative is wanted an operator alone."""
    # in a compiled graph the layers cost nothing
    if torch.compiler.is_compiling():
        return function.apply(*arguments)
    if not derivative_is_wanted(*arguments):
        return function.operator(*arguments)
    if is_plain(arguments):
        # Function.apply inspects the signature, for default values and transforms
        return super(torch.autograd.Function, function).apply(*arguments)
    return function.apply(*arguments)


def derivative_is_wanted(*arguments):
    """Whether a derivative of what is made of `arguments` may be taken."""
    # operators drop a tangent without a word, functions refuse it
    if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
        return True
    if torch.is_grad_enabled():
        for argument in arguments:
            if type(argument) not in VALUES and getattr(argument, "requires_grad", False):
                return True
    return False


class EMAttentionFunction(torch.autograd.Function):
    """The whole loop: (y, last bases, path, masses, lengths) of x in any layout and bases [(B,) H, C, K]."""

    generate_vmap_rule = True
    operator = ops.em_attend

    @staticmethod
    def forward(x, bases, weight, moves_bases, layout, num_iters, grad_iters, scale, eps, eps_mode, backend):
        return ops.em_forward(
            x, bases, weight, moves_bases, layout, num_iters, grad_iters, scale, eps, eps_mode, backend
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, bases, weight, _, *ctx.options = inputs
        _, last_bases, path, masses, lengths = output
        ctx.mark_non_differentiable(path, masses, lengths)
        ctx.set_materialize_grads(False)
        ctx.bases_rank, ctx.bases_dtype = bases.dim(), bases.dtype
        ctx.save_for_backward(x, weight, last_bases, path, masses, lengths)

    @staticmethod
    def backward(ctx, grad_y, grad_bases, *_):
        x, weight, last_bases, path, masses, lengths = ctx.saved_tensors
        _, num_iters, grad_iters = ctx.options[:3]
        if grad_iters == 0 or (grad_y is None and grad_bases is None):
            return (None,) * 11
        if grad_y is None:
            grad_y = x.new_zeros((), dtype=arithmetic_dtype(x.dtype)).expand(x.shape)
        need_bases = ctx.needs_input_grad[1] and grad_iters == num_iters
        grad_x, grad_initial = _once(
            ops.em_backward,
            grad_y,
            grad_bases,
            x,
            weight,
            last_bases,
            path,
            masses,
            lengths,
            need_bases,
            *ctx.options,
        )
        if not need_bases:
            return grad_x, *(None,) * 10
        return grad_x, _for_input(grad_initial, ctx.bases_rank, ctx.bases_dtype), *(None,) * 9


class FoldedAttentionFunction(torch.autograd.Function):
    """`EMAttentionFunction` behind a convolution [C, C] and [C]: (y, last bases, path, its sums, masses, lengths)."""

    generate_vmap_rule = True
    operator = ops.em_folded_forward

    @staticmethod
    def forward(
        x, bases, weight, conv_weight, conv_bias, moves_bases,
        layout, num_iters, grad_iters, scale, eps, eps_mode, backend,
    ):  # fmt: skip
        return ops.em_folded_forward(
            x, bases, weight, conv_weight, conv_bias, moves_bases,
            layout, num_iters, grad_iters, scale, eps, eps_mode, backend,
        )  # fmt: skip

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, bases, weight, conv_weight, conv_bias, _, *ctx.options = inputs
        _, *saved = output
        ctx.mark_non_differentiable(*saved[1:])
        ctx.set_materialize_grads(False)
        ctx.bases_rank, ctx.bases_dtype = bases.dim(), bases.dtype
        ctx.save_for_backward(x, weight, conv_weight, conv_bias, *saved)

    @staticmethod
    def backward(ctx, grad_y, grad_bases, *_):
        x, weight, conv_weight, conv_bias, *saved = ctx.saved_tensors
        _, num_iters, grad_iters = ctx.options[:3]
        if grad_iters == 0 or (grad_y is None and grad_bases is None):
            return (None,) * 13
        if grad_y is None:
            grad_y = x.new_zeros(()).expand(x.shape)
        need_bases = ctx.needs_input_grad[1] and grad_iters == num_iters
        grad_x, grad_conv_weight, grad_conv_bias, grad_initial = _once(
            ops.em_folded_backward,
            *(grad_y, grad_bases, x, weight, conv_weight, conv_bias, *saved, need_bases, *ctx.options),
        )
        grad_initial = _for_input(grad_initial, ctx.bases_rank, ctx.bases_dtype) if need_bases else None
        convolution = grad_conv_weight.to(conv_weight.dtype), grad_conv_bias.to(conv_bias.dtype)
        return grad_x, grad_initial, None, *convolution, *(None,) * 8


class EMStepFunction(torch.autograd.Function):
    """One iteration: (sums [B, H, C, K], mass [B, H, K]) of x in any layout and bases [(B,) H, C, K]."""

    generate_vmap_rule = True
    operator = ops.em_step

    @staticmethod
    def forward(x, bases, weight, logit_bias, layout, scale, backend):
        return ops.em_step(x, bases, weight, logit_bias, layout, scale, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, bases, weight, logit_bias, *ctx.options = inputs
        ctx.save_for_backward(x, bases, weight, logit_bias)

    @staticmethod
    def backward(ctx, grad_sums, grad_mass):
        x, bases, weight, logit_bias = ctx.saved_tensors
        grad_x, grad_bases, grad_bias = _once(
            ops.em_step_backward,
            grad_sums.contiguous(),
            grad_mass.contiguous(),
            x,
            bases,
            weight,
            logit_bias,
            *ctx.options,
        )
        return (
            grad_x,
            _for_input(grad_bases, bases.dim(), bases.dtype),
            None,
            _for_bias(grad_bias, logit_bias),
            *(None,) * 3,
        )


class EMReconstructFunction(torch.autograd.Function):
    """y of x in any layout, logit bases [(B,) H, C, K] and value bases [(B,) H, Cv, K]."""

    generate_vmap_rule = True
    operator = ops.em_reconstruct

    @staticmethod
    def forward(x, logit_bases, value_bases, logit_bias, layout, scale, backend):
        return ops.em_reconstruct(x, logit_bases, value_bases, logit_bias, layout, scale, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, logit_bases, value_bases, logit_bias, *ctx.options = inputs
        ctx.save_for_backward(x, logit_bases, value_bases, logit_bias)

    @staticmethod
    def backward(ctx, grad_y):
        x, logit_bases, value_bases, logit_bias = ctx.saved_tensors
        grad_x, grad_logit_bases, grad_value_bases, grad_bias = _once(
            ops.em_reconstruct_backward, grad_y, x, logit_bases, value_bases, logit_bias, *ctx.options
        )
        return (
            grad_x,
            _for_input(grad_logit_bases, logit_bases.dim(), logit_bases.dtype),
            _for_input(grad_value_bases, value_bases.dim(), value_bases.dtype),
            _for_bias(grad_bias, logit_bias),
            *(None,) * 3,
        )


class _OnceFunction(torch.autograd.Function):
    """A backward operator: differentiating its results raises, where a constant would be silently wrong."""

    generate_vmap_rule = True

    @staticmethod
    def forward(operator, *arguments):
        return operator(*arguments)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads):
        raise NotImplementedError(
            "the operators of ema_ops have no second derivative: differentiate ema_ops.reference instead"
        )


def _once(operator, *arguments):
    # compiled graphs know that a backward operator has no formula of its own
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return operator(*arguments)
    return _OnceFunction.apply(operator, *arguments)


def _for_input(grad, rank, dtype):
    """[B, H, C, K] as the gradient of bases [H, C, K] (rank 3: the same for every image) or [B, H, C, K]."""
    return (grad.sum(0) if rank == 3 else grad).to(dtype)


def _for_bias(grad, logit_bias):
    """[B, H, K] as the gradient of a logit bias [K], [B, K] or [B, H, K]."""
    if logit_bias is None:
        return None
    if logit_bias.dim() == 1:
        return grad.sum((0, 1)).to(logit_bias.dtype)
    return (grad.sum(1) if logit_bias.dim() == 2 else grad).to(logit_bias.dtype)


for _name, _function in {
    "em_forward": EMAttentionFunction,
    "em_folded_forward": FoldedAttentionFunction,
    "em_step": EMStepFunction,
    "em_reconstruct": EMReconstructFunction,
}.items():
    torch.library.register_autograd(f"ema_ops::{_name}", _function.backward, setup_context=_function.setup_context)


for _name, _instead in {"em_attend": "ema_ops.em_attention", "em_unit": "EMAUnit"}.items():

    def _no_gradient(ctx, *grads, name=_name, instead=_instead):
        raise NotImplementedError(f"{name} has no gradient: call it under torch.no_grad(), or {instead} instead")

    torch.library.register_autograd(f"ema_ops::{_name}", _no_gradient, setup_context=lambda ctx, inputs, output: None)
