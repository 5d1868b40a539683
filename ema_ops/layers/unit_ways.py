"""How an `EMAUnit` runs: as it is written, with its first convolution folded into the bases, or as one operator.

Folding is the same arithmetic in another order, so it may only stand for modules that do what their class says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from .. import ops
from ..autograd import derivative_is_wanted
from ..backends import may_offer_unit
from ..folding import folded_em_attention
from ..ops import autocast_enabled
from .attention import EMAttention

if TYPE_CHECKING:
    from .unit import EMAUnit

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def choose_way(unit: EMAUnit, x: Tensor) -> str:
    """How `unit` runs on `x`: "plain", "folded" or "one" operator. ValueError if it must fold and cannot."""
    if unit.fold is False or (unit.fold is None and not folding_is_faster(unit, x)):
        return "plain"
    reason = refusal_to_fold(unit)
    if unit.fold and reason is not None:
        raise ValueError(f"fold is True: {reason}")
    # a convolution that does not take x says best itself why not
    if reason is not None or not takes(unit.conv1, x):
        return "plain"
    return "one" if is_one_operator(unit, x) else "folded"


def folding_is_faster(unit: EMAUnit, x: Tensor) -> bool:
    """Whether it was measured to be, in training and evaluation: on a CPU, with many channels for every base.

    Nothing was measured on a GPU yet.
    """
    channels, num_bases = unit.attention.channels, unit.attention.num_bases
    return x.device.type == "cpu" and channels >= 256 and channels >= 4 * num_bases


def refusal_to_fold(unit: EMAUnit) -> str | None:
    """Why the first convolution of `unit` cannot be folded into the bases, or None if it can."""
    conv1, attention = unit.conv1, unit.attention
    if attention.num_heads > 1:
        return f"num_heads is {attention.num_heads}: expected 1, for with folding each head reads all channels"
    for name, module, kind in (("conv1", conv1, nn.Conv2d), ("attention", attention, EMAttention)):
        reason = refusal_to_replace(module, (kind,))
        if reason is not None:
            return f"{name} {reason}"
    return None if is_pointwise(conv1) else "conv1 is no 1x1 convolution of all channels to as many"


def refusal_to_replace(module: nn.Module, kinds: tuple[type, ...]) -> str | None:
    """Why other code may not do the work of `module`, said of it, or None if it may."""
    if type(module) not in kinds:
        return f"is {type(module).__name__}: expected {kinds[0].__name__} itself"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "has hooks, which would not run"
    if "forward" in module.__dict__:
        return "has another forward than its class"
    return None


def is_pointwise(convolution: nn.Conv2d) -> bool:
    """Whether it is a 1x1 convolution without stride, padding or groups that keeps the number of channels."""
    return (
        convolution.kernel_size == (1, 1)
        and convolution.stride == (1, 1)
        and convolution.padding in ((0, 0), "valid", "same")
        and convolution.groups == 1
        and convolution.in_channels == convolution.out_channels
    )


def takes(convolution: nn.Conv2d, x: Tensor) -> bool:
    """Whether `convolution` takes `x` as it is or under autocast."""
    dtypes = {parameter.dtype for parameter in convolution._parameters.values() if parameter is not None}
    if autocast_enabled(x):
        return all((dtype == torch.float64) == (x.dtype == torch.float64) for dtype in dtypes)
    return dtypes == {x.dtype}


def is_one_operator(unit: EMAUnit, x: Tensor) -> bool:
    """Whether `ema_ops::em_unit` can do the work of the folded `unit` on `x`: in evaluation, without a gradient."""
    attention, conv1, conv2, norm = unit.attention, unit.conv1, unit.conv2, cast("nn.BatchNorm2d", unit.norm)
    if refusal_to_replace(conv2, (nn.Conv2d,)) or refusal_to_replace(norm, NORMS):
        return False
    if norm.training or norm.running_mean is None or norm.running_var is None:
        return False
    if not (is_pointwise(conv2) and takes(conv2, x)):
        return False
    if autocast_enabled(x) and x.dtype not in (torch.float64, torch.get_autocast_dtype(x.device.type)):
        # the convolutions would round to 16 bits, the sum with x would not
        return False
    parameters = (parameter for module in (conv1, conv2, norm) for parameter in module._parameters.values())
    return not derivative_is_wanted(x, attention.bases, *parameters) and may_offer_unit(
        attention.backend, x.device.type
    )


def attend_folded(unit: EMAUnit) -> Callable[..., tuple[Tensor, Tensor]]:
    """`apply_em_attention` behind the first convolution."""

    def attend(x: Tensor, bases: Tensor, weight: Tensor | None, **options: Any) -> tuple[Tensor, Tensor]:
        return folded_em_attention(x, unit.conv1.weight, unit.conv1.bias, bases, weight, **options)

    return attend


def run_as_one(unit: EMAUnit) -> Callable[..., tuple[Tensor, Tensor]]:
    """The whole unit in evaluation, called like `apply_em_attention`."""

    def run(x: Tensor, bases: Tensor, weight: Tensor | None, **options: Any) -> tuple[Tensor, Tensor]:
        conv1 = unit.conv1
        weight1, bias1 = conv1.weight.flatten(1), conv1.bias
        parameters = (weight1, weight1.new_zeros(len(weight1)) if bias1 is None else bias1, *folded_norm(unit))
        loop = (options[name] for name in ("layout", "num_iters", "scale", "eps", "eps_mode", "backend"))
        return ops.em_unit(x, bases, weight, *parameters, *loop)

    return run


def folded_norm(unit: EMAUnit) -> tuple[Tensor, Tensor]:
    """The second convolution and its batch norm in evaluation as one: weight [C, C] and bias [C], not rounded."""
    conv, norm = unit.conv2, cast("nn.BatchNorm2d", unit.norm)
    matrix, scale, shift, before = conv.weight.flatten(1), norm.weight, norm.bias, conv.bias
    dtype = torch.float64 if matrix.dtype == torch.float64 else torch.float32
    mean, variance = (cast("Tensor", statistic).to(dtype) for statistic in (norm.running_mean, norm.running_var))
    gain = torch.rsqrt(variance + norm.eps)
    if scale is not None:
        gain = gain * scale
    if before is not None:
        mean = mean - before
    bias = -gain * mean if shift is None else torch.addcmul(shift.to(dtype), gain, mean, value=-1)
    return matrix * gain.unsqueeze(1), bias
