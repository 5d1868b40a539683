"""`EMAttention`: the loop as a layer that keeps its bases."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from ..backends import check_backend
from ..functional import apply_em_attention
from ..problem import (
    check_count,
    check_eps,
    check_flag,
    check_floating,
    check_grad_iters,
    check_loop_features,
    check_scale,
    check_weight,
)
from .running_bases import RENORMALIZE, normalize_over_channels, update_running_bases


class EMAttention(nn.Module):
    """EM attention over all positions of an image or a sequence, in the shape of its input.

    Li et al., ICCV 2019, section 3. Two defaults differ from the code published with the paper: the gradient is
    exact through all iterations (there: none, `grad_iters=0`), and the running bases keep length one
    (there: they are never scaled again, `renormalize="none"`). `PRESETS["official"]` and
    `PRESETS["mmsegmentation"]` hold the options that reproduce those implementations.

    State: `bases` [num_heads, channels / num_heads, num_bases], a persistent buffer that follows the mean of the
    last bases over the images in training, or a parameter with `learnable_bases=True`.

    Args:
        channels: C of the input.
        num_bases: K.
        num_iters: T.
        num_heads: heads that split the channels, each with its own K bases.
        scale: temperature of the E-step.
        momentum: weight of the new value in the moving average, 0 to 1 (as in batch norm).
        learnable_bases: learn the initial bases instead of averaging them.
        renormalize: what is scaled to length one in the moving average: "mixed" (the result), "mean" (the new value
            before mixing) or "none".
        eps, eps_mode, grad_iters, backend: as in `em_attention`.
        channel_dim: 1 for [B, C, *spatial], -1 for [B, *spatial, C] (tokens).
        average_group: process group over whose ranks the running bases are averaged, weighted by images; None
            for no communication. A copy of the layer shares it; a layer with a group cannot be pickled.

    Raises:
        ValueError, TypeError: an option does not fit, or `learnable_bases` with `grad_iters` < `num_iters`, for
            then the bases would never get a gradient.
    """

    def __init__(
        self,
        channels: int,
        num_bases: int = 64,
        num_iters: int = 3,
        *,
        num_heads: int = 1,
        scale: float = 1.0,
        momentum: float = 0.1,
        learnable_bases: bool = False,
        renormalize: str = "mixed",
        eps: float = 1e-6,
        eps_mode: str = "add",
        grad_iters: int | None = None,
        channel_dim: int = 1,
        average_group: dist.ProcessGroup | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.channels = check_count("channels", channels)
        self.num_bases = check_count("num_bases", num_bases)
        self.num_iters = check_count("num_iters", num_iters)
        self.num_heads = check_count("num_heads", num_heads)
        if channels % num_heads:
            raise ValueError(f"num_heads is {num_heads}: expected a divisor of channels = {channels}")
        self.scale = check_scale(scale)
        self.momentum = _check_momentum(momentum)
        self.learnable_bases = check_flag("learnable_bases", learnable_bases)
        if renormalize not in RENORMALIZE:
            raise ValueError(f"renormalize is {renormalize!r}: expected one of {', '.join(map(repr, RENORMALIZE))}")
        self.renormalize = renormalize
        self.eps, self.eps_mode = check_eps(eps, eps_mode), eps_mode
        if check_grad_iters(grad_iters, num_iters) < num_iters and learnable_bases:
            raise ValueError(
                f"grad_iters is {grad_iters} with learnable_bases: expected None or num_iters = {num_iters}, "
                "or the bases would never get a gradient"
            )
        self.grad_iters = grad_iters
        if not isinstance(channel_dim, int) or channel_dim not in (1, -1):
            raise ValueError(f"channel_dim is {channel_dim!r}: expected 1 for [B, C, *spatial] or -1 for tokens")
        self.channel_dim = channel_dim
        if average_group is not None and not isinstance(average_group, dist.ProcessGroup):
            raise TypeError(f"average_group is {average_group!r}: expected a torch.distributed.ProcessGroup or None")
        self.average_group = average_group
        check_backend(backend)
        self.backend = backend

        bases = torch.empty(num_heads, channels // num_heads, num_bases)
        if learnable_bases:
            self.bases = nn.Parameter(bases)
        else:
            self.register_buffer("bases", bases)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new bases: normal, then scaled to length one over the channels (as in the paper's code)."""
        with torch.no_grad():
            self.bases.normal_(0, math.sqrt(2 / self.num_bases))
            self.bases.copy_(normalize_over_channels(self.bases, self.eps, self.eps_mode))

    def forward(
        self,
        x: Tensor,
        weight: Tensor | None = None,
        num_iters: int | None = None,
        return_bases: bool = False,
        update_bases: bool | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """EM attention of `x`.

        Args:
            x: [B, C, *spatial], or [B, *spatial, C] with channel_dim=-1. A 3-D input with channel_dim=1 is
                [B, C, N]; tokens [B, N, C] need channel_dim=-1. Any dtype that `em_attention` takes.
            weight: non-negative weights or bool mask of the positions, [B, *spatial] or [B, N].
            num_iters: another T for this call; `grad_iters` is clamped to it.
            return_bases: also return the last bases [B, num_heads, C / num_heads, K].
            update_bases: move the running bases; None means in training only. Under activation checkpointing
                pass False: a recomputation that would move them raises.

        Returns:
            y in the shape, dtype and memory format of x (bfloat16 for float8_e4m3fn; under autocast in its dtype), and
            the bases if asked.

        Raises:
            ValueError, TypeError: an argument does not fit.
            RuntimeError: the forward is recomputed inside backward and would move the running bases again.
        """
        check_flag("return_bases", return_bases)
        y, last_bases = self.run(apply_em_attention, x, weight, num_iters, update_bases)
        return (y, last_bases) if return_bases else y

    def run(
        self,
        attend: Callable[..., tuple[Tensor, Tensor]],
        x: Tensor,
        weight: Tensor | None,
        num_iters: int | None,
        update_bases: bool | None,
    ) -> tuple[Tensor, Tensor]:
        """`forward` with another function, called like `apply_em_attention`; y and the last bases."""
        num_iters = self.num_iters if num_iters is None else check_count("num_iters", num_iters)
        moves, bases = self._moves_bases(update_bases), self.bases
        self._check_features(x, bases)
        weight = self._flat_weight(weight, x)
        y, last_bases = attend(
            x,
            bases,
            weight,
            layout="BCN" if self.channel_dim == 1 else "BNC",
            num_iters=num_iters,
            scale=self.scale,
            # learnable bases get their gradient through every iteration, however many
            grad_iters=None if self.grad_iters is None or self.learnable_bases else min(self.grad_iters, num_iters),
            eps=self.eps,
            eps_mode=self.eps_mode,
            backend=self.backend,
            moves_bases=moves,
        )
        if moves:
            # images without positions have no weight; other ranks may still wait for this one
            self.update_running_bases(last_bases, weight if x.numel() > 0 else last_bases.new_zeros(x.shape[0], 1))
        return y, last_bases

    def update_running_bases(self, bases: Tensor, weight: Tensor | None = None) -> None:
        """Move the buffer towards the mean of `bases` [B, num_heads, C / num_heads, K] over the images.

        For callers that run the layer with update_bases=False and decide themselves when the average moves.
        `weight` [B, N] only tells which images have a position that counts.

        Raises:
            ValueError: the bases are learnable, or `bases` or `weight` has another shape or is on another device.
            TypeError: `bases` or `weight` is no tensor of such a dtype.
        """
        if self.learnable_bases:
            raise ValueError("learnable_bases is True: there is no running average to move")
        check_floating("bases", bases)
        if bases.dim() != 4 or bases.shape[1:] != self.bases.shape:
            raise ValueError(f"bases has shape {list(bases.shape)}: expected [B, {str(list(self.bases.shape))[1:]}")
        if bases.device != self.bases.device:
            raise ValueError(f"bases is on {bases.device}: expected {self.bases.device}, the device of the layer")
        check_weight(weight, bases, (2,), "to be [B, N]")
        update_running_bases(
            self.bases,
            bases,
            weight,
            momentum=self.momentum,
            renormalize=self.renormalize,
            eps=self.eps,
            eps_mode=self.eps_mode,
            group=self.average_group,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> EMAttention:
        # a process group is shared, not copied
        memo[id(self.average_group)] = self.average_group
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def extra_repr(self) -> str:
        """The options that differ between layers."""
        return (
            f"channels={self.channels}, num_bases={self.num_bases}, num_iters={self.num_iters}, "
            f"num_heads={self.num_heads}, grad_iters={self.grad_iters}, learnable_bases={self.learnable_bases}"
        )

    def _moves_bases(self, update_bases: bool | None) -> bool:
        if update_bases is not None:
            check_flag("update_bases", update_bases)
        if self.learnable_bases:
            if update_bases:
                raise ValueError("update_bases is True with learnable_bases: there is no running average to move")
            return False
        return self.training if update_bases is None else update_bases

    def _check_features(self, x: Any, bases: Tensor) -> None:
        check_loop_features(x)
        if x.dim() < 3 or x.shape[self.channel_dim] != self.channels:
            layout = "[B, C, *spatial]" if self.channel_dim == 1 else "[B, *spatial, C]"
            raise ValueError(f"x has shape {list(x.shape)}: expected {layout} with C = {self.channels}")
        if x.device != bases.device:
            raise ValueError(f"x is on {x.device}: expected {bases.device}, the device of the layer")
        if bases.dtype == torch.float64 and x.dtype != torch.float64:
            raise TypeError(f"x has dtype {x.dtype}: expected torch.float64, the dtype of the layer")

    def _flat_weight(self, weight: Any, x: Tensor) -> Tensor | None:
        """`weight` [B, *spatial] or [B, N], checked, as [B, N]."""
        if weight is None:
            return None
        check_weight(weight, x, (2, x.dim() - 1), "to be [B, *spatial] or [B, N]")
        spatial = x.shape[2:] if self.channel_dim == 1 else x.shape[1:-1]
        if weight.dim() > 2 and weight.shape[1:] != spatial:
            raise ValueError(
                f"weight has shape {list(weight.shape)}: expected [B, *spatial] with spatial sizes {list(spatial)} "
                f"or [B, {math.prod(spatial)}]"
            )
        return weight.flatten(1)


def _check_momentum(momentum: Any) -> float:
    if isinstance(momentum, bool) or not isinstance(momentum, Real):
        raise TypeError(f"momentum is {momentum!r} ({type(momentum).__name__}): expected a number")
    share = float(momentum)
    if not 0 <= share <= 1:
        raise ValueError(f"momentum is {momentum}: expected 0 to 1, the weight of the new value")
    return share
