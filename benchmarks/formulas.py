"""What each peer computes, as on paper: differentiable, float64-capable, slow. Peers are checked against these.

Shapes: x [B, N, C] to y [B, N, C]. No learned 1x1 convolution stands around any of them: the attention alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ema_ops import reference

from .case import Case, Inputs

HEAD_WIDTH = 64
ROWS_AT_ONCE = 2048


@dataclass(frozen=True)
class Formula:
    """A formula and the operations (2 for a multiply-add) of its products for one image.

    Peers of a `strict` one are ours to judge: see `verify.py`.
    """

    name: str
    apply: Callable[[Case, Inputs], Tensor]
    operations: Callable[[Case], float]
    strict: bool = False


def temperature(case: Case, width: int) -> float:
    """Of self-attention among `width` channels: log(N) / width.

    With normal features a position then gives about half of its attention to itself: neither a copy nor a mean.
    """
    return math.log(case.positions) / width


def em_attention(case: Case, inputs: Inputs) -> Tensor:
    """EM attention of the EMANet paper, exact gradient."""
    return reference.em_attention(inputs.x, inputs.bases, num_iters=case.num_iters)[0]


def self_attention(case: Case, inputs: Inputs) -> Tensor:
    """softmax(t x x^T) x of the non-local paper, one head of width C."""
    return _attend(inputs.x, temperature(case, case.channels))


def self_attention_heads(case: Case, inputs: Inputs) -> Tensor:
    """The same with heads of 64 channels each."""
    heads = inputs.x.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2)
    return _attend(heads, temperature(case, HEAD_WIDTH)).transpose(1, 2).flatten(2)


def external_attention(case: Case, inputs: Inputs) -> Tensor:
    """Two memories of K rows: softmax over N, then scaled to sum one over K (Guo et al., 2021)."""
    attention = torch.softmax(torch.einsum("bnc,ck->bnk", inputs.x, inputs.keys), dim=1)
    attention = attention / (1e-9 + attention.sum(dim=2, keepdim=True))
    return torch.einsum("bnk,ck->bnc", attention, inputs.values)


def double_attention(case: Case, inputs: Inputs) -> Tensor:
    """Gather K descriptors by a softmax over N, distribute them by a softmax over K (A2-Nets, 2018)."""
    gather = torch.softmax(torch.einsum("bnc,ck->bnk", inputs.x, inputs.keys), dim=1)
    descriptors = torch.einsum("bnc,bnk->bck", inputs.x, gather)
    distribute = torch.softmax(torch.einsum("bnc,ck->bnk", inputs.x, inputs.values), dim=2)
    return torch.einsum("bnk,bck->bnc", distribute, descriptors)


def _attend(x: Tensor, scale: float) -> Tensor:
    """Self-attention over the last two dimensions, some query rows at a time so that N x N never exists whole."""

    def rows(queries: Tensor, keys: Tensor) -> Tensor:
        return torch.softmax(scale * (queries @ keys.transpose(-1, -2)), dim=-1) @ keys

    parts = x.split(ROWS_AT_ONCE, dim=-2)
    if len(parts) == 1:
        return rows(x, x)
    return torch.cat([checkpoint(rows, part, x, use_reentrant=False) for part in parts], dim=-2)


def _products(count: Callable[[Case], int]) -> Callable[[Case], float]:
    """Operations of `count` products of N x C x K."""
    return lambda case: 2.0 * count(case) * case.positions * case.channels * case.num_bases


def _all_pairs(case: Case) -> float:
    return 4.0 * case.positions**2 * case.channels


EM = Formula("EM attention", em_attention, _products(lambda case: 2 * case.num_iters + 1), strict=True)
SELF = Formula("self-attention", self_attention, _all_pairs)
SELF_HEADS = Formula("self-attention with heads", self_attention_heads, _all_pairs)
EXTERNAL = Formula("external attention", external_attention, _products(lambda case: 2))
DOUBLE = Formula("double attention", double_attention, _products(lambda case: 4))
