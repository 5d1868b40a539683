"""What the kernels share, as functions inside them: where a tile lies, which elements exist, softmax, inverses.

Names: n are positions [BLOCK_N], c channels [BLOCK_C], k bases [BLOCK_K]; an image is one head of one image.
Offsets that count elements of a whole tensor are int64.
"""

from __future__ import annotations

import triton
import triton.language as tl

# arguments whose values follow B, H or N: no new binary for them
VARYING = (
    *("heads", "images", "positions", "products", "splits", "tiles", "x_batch", "x_head", "x_slow"),
    *("y_batch", "y_head", "y_slow", "bases_batch", "bases_head", "weight_batch", "weight_head", "weight_position"),
    *("extra_batch", "extra_head", "extra_channel", "extra_base"),
)
# arguments read by single numbers, or small: their alignment is not worth one
SMALL = ("bases", "weight", "unit", "logit_bias", "result", "mass", "length", "extra", "powers", "grad_mass")


def kernel(function):
    """`triton.jit` without a compiled variant for what changes from call to call, by the names above."""
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    return triton.jit(
        function,
        do_not_specialize=[name for name in names if name in VARYING],
        do_not_specialize_on_alignment=[name for name in names if name in SMALL],
    )


@triton.jit
def image_pointer(tensor, image, heads, batch_stride, head_stride, UNIT: tl.constexpr):
    """The first element of `image` in a tensor [B, H, ..]; strides count in steps of UNIT elements."""
    batch = (image // heads).to(tl.int64)
    head = (image % heads).to(tl.int64)
    return tensor + batch * batch_stride * UNIT + head * head_stride * UNIT


@triton.jit
def tile_offsets(n, c, slow, fast, UNIT: tl.constexpr, CHANNELS_FIRST: tl.constexpr):
    """Offsets [BLOCK_N, BLOCK_C] inside an image of the strides `plan.Layout` describes."""
    n, c = n.to(tl.int64), c.to(tl.int64)
    if CHANNELS_FIRST:
        offsets = (n * fast)[:, None] + (c * slow * UNIT)[None, :]
    else:
        offsets = (n * slow * UNIT)[:, None] + (c * fast)[None, :]
    return offsets


@triton.jit
def position_count(positions, UNIT: tl.constexpr, CHANNELS_FIRST: tl.constexpr):
    """N from `plan.Layout.positions`."""
    if CHANNELS_FIRST:
        positions = positions * UNIT
    return positions


@triton.jit
def tile_mask(n, c, N, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Which elements [BLOCK_N, BLOCK_C] of a tile exist; the channels are all there if blocks divide C."""
    mask = (n < N)[:, None]
    if C % BLOCK_C != 0:
        mask = mask & (c < C)[None, :]
    return mask


@triton.jit
def load_bases(bases, c, k, C: tl.constexpr, K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr):
    """Bases [BLOCK_C, BLOCK_K] from a dense float32 matrix [C, K], 0 beyond it."""
    offsets = c[:, None] * K + k[None, :]
    if C % BLOCK_C == 0 and K % BLOCK_K == 0:
        tile = tl.load(bases + offsets)
    else:
        tile = tl.load(bases + offsets, mask=(c < C)[:, None] & (k < K)[None, :], other=0.0)
    return tile


@triton.jit
def responsibilities_mask(n, k, N, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """Which elements [BLOCK_N, BLOCK_K] of a tile of responsibilities exist."""
    mask = (n < N)[:, None]
    if K % BLOCK_K != 0:
        mask = mask & (k < K)[None, :]
    return mask


@triton.jit
def softmax_rows(logits, k, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """Softmax over the K bases of every row of `logits` [BLOCK_N, BLOCK_K], in float32; 0 beyond K."""
    if K != BLOCK_K:
        logits = tl.where((k < K)[None, :], logits, float("-inf"))
    powers = tl.exp(logits - tl.max(logits, 1)[:, None])
    return powers * (1.0 / tl.sum(powers, 1))[:, None]


@triton.jit
def position_weights(weight, n, N, image, heads, weight_batch, weight_head, weight_position):
    """Weights [BLOCK_N] in float32, 1 without `weight`; 0 beyond N."""
    if weight is None:
        w = (n < N).to(tl.float32)
    else:
        start = image_pointer(weight, image, heads, weight_batch, weight_head, 1)
        w = tl.load(start + n.to(tl.int64) * weight_position, mask=n < N, other=0.0)
    return w


@triton.jit
def inverse(value, eps, EPS_ADD: tl.constexpr):
    """1 / (eps + value) or 1 / max(eps, value); 0 where that would divide by 0."""
    denominator = value + eps if EPS_ADD else tl.maximum(value, eps, propagate_nan=tl.PropagateNan.ALL)
    return tl.where(denominator == 0.0, 0.0, 1.0 / tl.where(denominator == 0.0, 1.0, denominator))
