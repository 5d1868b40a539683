"""The kernels of the gradient that the forward pass does not have. Every program works on one image.

grad_x is a sum of products of rank K, left [N, K] times right [K, C]: two for every iteration, the weighted
responsibilities times the gradient of the sums, and the gradient of the logits times the bases they were made with. All
lefts [S, B * H, N, K] and rights [S, B * H, K, C] are kept in the dtype of x, and `grad_features` adds the products at
the end.

A gradient of sums is kept divided by a power of two of its base, and its responsibilities times that power: a base that
dies has a tiny mass and a huge gradient, and float16 would lose the one and overflow with the other.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import (
    image_pointer,
    inverse,
    kernel,
    position_count,
    position_weights,
    responsibilities_mask,
    softmax_rows,
    tile_mask,
    tile_offsets,
)


@kernel
def e_step_backward(
    x,
    x_batch,
    x_head,
    x_slow,
    x_fast,
    positions,
    logit_rows,
    logit_bias,
    sums_rows,
    powers,
    grad_mass,
    weight,
    weight_batch,
    weight_head,
    weight_position,
    grad_y,
    y_batch,
    y_head,
    y_slow,
    y_fast,
    value_rows,
    z,
    grad_logits,
    heads,
    C: tl.constexpr,
    CV: tl.constexpr,
    K: tl.constexpr,
    X_UNIT: tl.constexpr,
    X_CHANNELS_FIRST: tl.constexpr,
    Y_UNIT: tl.constexpr,
    Y_CHANNELS_FIRST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of positions of one image, x in chunks of BLOCK_C channels: responsibilities and gradient of the logits.

    The responsibilities get a gradient from the sums, weight * (x sums_rows^T * powers + grad_mass), unless
    `sums_rows` is None, and from the reconstruction, grad_y value_rows^T, unless `value_rows` is None. `logit_rows`
    (the scaled bases), `sums_rows` [B * H, K, C] and `value_rows` [B * H, K, CV] are in the dtype of x. Writes `z`,
    weighted and times `powers` if there are sums, and `grad_logits`, both [B * H, N, K].
    """
    N = position_count(positions, X_UNIT, X_CHANNELS_FIRST)
    tiles = tl.cdiv(N, BLOCK_N)
    image, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    x = image_pointer(x, image, heads, x_batch, x_head, X_UNIT)
    first_row = image.to(tl.int64) * K
    logits = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    grad_z = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for start in range(0, C, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        offsets = tile_offsets(n, c, x_slow, x_fast, X_UNIT, X_CHANNELS_FIRST)
        features = tl.load(x + offsets, mask=tile_mask(n, c, N, C, BLOCK_C), other=0.0)
        logits = tl.dot(
            features,
            load_rows(logit_rows + first_row * C, c, k, C, K, BLOCK_C, BLOCK_K),
            logits,
            input_precision=PRECISION,
        )
        if sums_rows is not None:
            columns = load_rows(sums_rows + first_row * C, c, k, C, K, BLOCK_C, BLOCK_K)
            grad_z = tl.dot(features, columns, grad_z, input_precision=PRECISION)
    if logit_bias is not None:
        logits += tl.load(logit_bias + first_row + k, mask=k < K, other=0.0)[None, :]
    responsibilities = softmax_rows(logits, k, K, BLOCK_K)

    rows = (first_row * N + n.to(tl.int64) * K)[:, None] + k[None, :]
    mask = responsibilities_mask(n, k, N, K, BLOCK_K)
    weighted = responsibilities
    if sums_rows is not None:
        w = position_weights(weight, n, N, image, heads, weight_batch, weight_head, weight_position)[:, None]
        power = tl.load(powers + first_row + k, mask=k < K, other=0.0)[None, :]
        grad_z = w * (grad_z * power + tl.load(grad_mass + first_row + k, mask=k < K, other=0.0)[None, :])
        weighted = w * (responsibilities * power)
    tl.store(z + rows, saturated(weighted, z), mask=mask)
    if value_rows is not None:
        grad_y = image_pointer(grad_y, image, heads, y_batch, y_head, Y_UNIT)
        for start in range(0, CV, BLOCK_C):
            c = start + tl.arange(0, BLOCK_C)
            offsets = tile_offsets(n, c, y_slow, y_fast, Y_UNIT, Y_CHANNELS_FIRST)
            grads = tl.load(grad_y + offsets, mask=tile_mask(n, c, N, CV, BLOCK_C), other=0.0)
            columns = load_rows(value_rows + first_row * CV, c, k, CV, K, BLOCK_C, BLOCK_K)
            grad_z = tl.dot(grads, columns, grad_z, input_precision=PRECISION)
    total = tl.sum(responsibilities * grad_z, 1)[:, None]
    tl.store(grad_logits + rows, saturated(responsibilities * (grad_z - total), z), mask=mask)


@kernel
def normalize_backward(
    grads,
    extra,
    extra_batch,
    extra_head,
    extra_channel,
    extra_base,
    bases,
    mass,
    length,
    sums_rows,
    powers,
    grad_mass,
    heads,
    splits,
    factor,
    eps,
    C: tl.constexpr,
    K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    EPS_ADD: tl.constexpr,
):
    """One base of one image: its column of the gradient of the sums, as a row of `sums_rows` with its power.

    `factor` times the slots of `grads` [B * H, splits, K, C], plus `extra` [B, H, C, K] unless that is None, is the
    gradient of `bases` [B * H, C, K], which were normalised by `mass` and `length` [B * H, K]; `grad_mass` gets the
    gradient of the mass. With `bases` None it is the gradient of the sums already.
    """
    image, k = (tl.program_id(0) // K).to(tl.int64), tl.program_id(0) % K
    base = image * K + k
    grads += image * splits * (K * C) + k * C
    c = tl.arange(0, BLOCK_C)
    slot = tl.arange(0, BLOCK_S)
    slots = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    for first in range(0, splits, BLOCK_S):
        s = (first + slot).to(tl.int64)
        slots += tl.load(grads + s[:, None] * (K * C) + c[None, :], mask=(s < splits)[:, None] & (c < C), other=0.0)
    grad = factor * tl.sum(slots, 0)
    if extra is not None:
        extra = image_pointer(extra, image, heads, extra_batch, extra_head, 1) + k * extra_base
        grad += tl.load(extra + c * extra_channel, mask=c < C, other=0.0).to(tl.float32)
    if bases is not None:
        m = tl.load(bases + image * (K * C) + c * K + k, mask=c < C, other=0.0)
        amount, norm = tl.load(mass + base), tl.load(length + base)
        inverse_mass, inverse_length = inverse(amount, eps, EPS_ADD), inverse(norm, eps, EPS_ADD)
        along = tl.sum(m * grad, 0)
        # a dead base (length 0) has no direction to lose
        moves = norm > 0.0 if EPS_ADD else norm > eps
        radial = tl.where(moves, along / tl.where(moves, norm, 1.0), 0.0)
        grad = (grad * inverse_length - m * radial) * inverse_mass
        # after the L2 norm the mass matters only through eps: written so that nothing cancels
        if EPS_ADD:
            tl.store(grad_mass + base, -along * eps * inverse_length * inverse_mass)
        else:
            only_mass_moves = (norm <= eps) & (amount > eps)
            tl.store(grad_mass + base, tl.where(only_mass_moves, -along * inverse_mass, 0.0))
    power = power_of_two(tl.max(tl.abs(grad), 0))
    tl.store(sums_rows + base * C + c, (grad / power).to(sums_rows.dtype.element_ty), mask=c < C)
    tl.store(powers + base, power)


@kernel
def grad_features(
    left,
    right,
    y,
    y_batch,
    y_head,
    y_slow,
    y_fast,
    positions,
    images,
    heads,
    products,
    C: tl.constexpr,
    K: tl.constexpr,
    Y_UNIT: tl.constexpr,
    Y_CHANNELS_FIRST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of positions, one chunk of channels: the sum of left [S, B * H, N, K] times right [S, B * H, K, C]."""
    chunks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    steps: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    N = position_count(positions, Y_UNIT, Y_CHANNELS_FIRST)
    tiles = tl.cdiv(N, BLOCK_N)
    chunk, program = tl.program_id(0) % chunks, tl.program_id(0) // chunks
    image, tile = (program // tiles).to(tl.int64), program % tiles
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    c = chunk * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    for step in range(products * steps):
        first_row = (step // steps * images + image) * K
        k = step % steps * BLOCK_K + tl.arange(0, BLOCK_K)
        rows = left + first_row * N + (n.to(tl.int64) * K)[:, None] + k[None, :]
        lefts = tl.load(rows, mask=tile_mask(n, k, N, K, BLOCK_K), other=0.0)
        offsets = k[:, None] * C + c[None, :]
        if C % BLOCK_C == 0 and K % BLOCK_K == 0:
            rights = tl.load(right + first_row * C + offsets)
        else:
            rights = tl.load(right + first_row * C + offsets, mask=(k < K)[:, None] & (c < C)[None, :], other=0.0)
        total = tl.dot(lefts, rights, total, input_precision=PRECISION)
    y = image_pointer(y, image, heads, y_batch, y_head, Y_UNIT)
    offsets = tile_offsets(n, c, y_slow, y_fast, Y_UNIT, Y_CHANNELS_FIRST)
    tl.store(y + offsets, saturated(total, y), mask=tile_mask(n, c, N, C, BLOCK_C))


@triton.jit
def load_rows(rows, c, k, C: tl.constexpr, K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr):
    """Columns [BLOCK_C, BLOCK_K] from dense rows [K, C], 0 beyond them."""
    offsets = c[:, None] + k[None, :] * C
    if C % BLOCK_C == 0 and K == BLOCK_K:
        tile = tl.load(rows + offsets)
    else:
        tile = tl.load(rows + offsets, mask=(c < C)[:, None] & (k < K)[None, :], other=0.0)
    return tile


@triton.jit
def saturated(value, pointer):
    """`value` in the dtype behind `pointer`; where all features are 0 the gradient is more than float16 holds."""
    if pointer.dtype.element_ty == tl.float16:
        value = tl.clamp(value, -65504.0, 65504.0, propagate_nan=tl.PropagateNan.ALL)
    return value.to(pointer.dtype.element_ty)


@triton.jit
def power_of_two(value):
    """The largest power of two up to `value` >= 0, within 2^-126 to 2^126; 1 for 0. An exact factor and divisor."""
    exponent = value.to(tl.int32, bitcast=True) & 0x7F800000
    exponent = tl.minimum(tl.maximum(exponent, 1 << 23), 253 << 23)
    return tl.where(value == 0.0, 1.0, exponent.to(tl.float32, bitcast=True))
