"""The four kernels of the gradient: rows, moments, the reduction that finishes a moment, and the last product.

Workspace, with I = B * H images: `left` [I, N, R] and `right` [I, R, C] such that grad_x = left right. Every
iteration owns 2 K columns of `left` and rows of `right`: the weighted responsibilities against the gradient of the
sums, and the gradient of the product x bases against the bases it was made with. A row of `right` that holds a
gradient of sums is stored divided by a power of two and the power is given back on the other side: neither the
tiny mass of a dying base nor its huge gradient leaves the range of float16.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def power_of_two(value):
    """The largest power of two not above `value` > 0, kept in 2^-126..2^126; 1 for 0. Exact to multiply and divide by."""
    bits = value.to(tl.int32, bitcast=True) & 0x7F800000
    bits = tl.minimum(tl.maximum(bits, 1 << 23), 253 << 23)
    return tl.where(value == 0.0, 1.0, bits.to(tl.float32, bitcast=True))


@triton.jit
def inverse(value, eps, EPS_ADD: tl.constexpr):
    """1 / (eps + value) or 1 / max(eps, value); 0 where that would divide by 0."""
    denominator = value + eps if EPS_ADD else tl.maximum(value, eps, propagate_nan=tl.PropagateNan.ALL)
    return tl.where(denominator == 0.0, 0.0, 1.0 / tl.where(denominator == 0.0, 1.0, denominator))


@triton.jit
def load_features(start, n, n_stride, n_inside, c, c_stride, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Tile [n, c] of an image whose first element is at `start`; 0 outside."""
    pointers = start + n[:, None] * n_stride + c[None, :].to(tl.int64) * c_stride
    if C % BLOCK_C == 0:
        return tl.load(pointers, mask=n_inside[:, None], other=0.0)
    return tl.load(pointers, mask=n_inside[:, None] & (c < C)[None, :], other=0.0)


@triton.jit
def load_bases(start, c, k, C: tl.constexpr, K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr):
    """Tile [c, k] of rows [K, C]; 0 outside."""
    pointers = start + k[None, :] * C + c[:, None]
    if C % BLOCK_C == 0 and K == BLOCK_K:
        return tl.load(pointers)
    return tl.load(pointers, mask=(c < C)[:, None] & (k < K)[None, :], other=0.0)


@triton.jit
def store_columns(start, n, row_stride, n_inside, k, value, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """Tile [n, k] of `left`."""
    pointers = start + n[:, None] * row_stride + k[None, :]
    mask = n_inside[:, None] if K == BLOCK_K else n_inside[:, None] & (k < K)[None, :]
    tl.store(pointers, value.to(start.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["positions", "heads"])
def rows_kernel(
    x,
    x_batch,
    x_head,
    x_row,
    x_channel,
    grad_y,
    grad_y_batch,
    grad_y_head,
    grad_y_row,
    grad_y_channel,
    logit_bases,
    logit_bases_image,
    grad_sums,
    grad_sums_image,
    grad_sums_power,
    grad_mass,
    value_bases,
    value_bases_image,
    weight,
    weight_batch,
    weight_head,
    weight_row,
    logit_bias,
    logit_bias_batch,
    logit_bias_head,
    logit_bias_base,
    left_z,
    left_product,
    left_image,
    left_row,
    grad_bias,
    positions,
    heads,
    scale,
    C: tl.constexpr,
    CV: tl.constexpr,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_SUMS: tl.constexpr,
    HAS_VALUES: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BIASED: tl.constexpr,
    STORE_Z: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Rows of one image: responsibilities z, their gradient, and the gradient of the product x logit_bases.

    grad_z = weight * (x grad_sums + grad_mass) if HAS_SUMS, plus grad_y value_bases if HAS_VALUES; with neither only z
    is stored. `grad_sums`, `logit_bases` [I, K, C] and `value_bases` [I, K, CV] are in the dtype of x; `grad_bias`
    [programs, K] gets the sum over the rows of the gradient of the logits if BIASED.
    """
    tiles = tl.cdiv(positions, BLOCK_N)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    batch, head = image // heads, image % heads
    n = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    n_inside = n < positions
    k = tl.arange(0, BLOCK_K)
    k_inside = k < K

    x += batch * x_batch + head * x_head
    logit_bases += image * logit_bases_image
    grad_sums += image * grad_sums_image
    logits = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    grad_z = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for start in range(0, C, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        features = load_features(x, n, x_row, n_inside, c, x_channel, C, BLOCK_C)
        tile = load_bases(logit_bases, c, k, C, K, BLOCK_C, BLOCK_K)
        logits = tl.dot(features, tile, logits, input_precision=PRECISION)
        if HAS_SUMS:
            tile = load_bases(grad_sums, c, k, C, K, BLOCK_C, BLOCK_K)
            grad_z = tl.dot(features, tile, grad_z, input_precision=PRECISION)

    logits *= scale * 1.4426950408889634
    if BIASED:
        bias = tl.load(logit_bias + batch * logit_bias_batch + head * logit_bias_head + k * logit_bias_base, k_inside)
        logits += bias.to(tl.float32)[None, :] * 1.4426950408889634
    if K != BLOCK_K:
        logits = tl.where(k_inside[None, :], logits, float("-inf"))
    z = tl.exp2(logits - tl.max(logits, 1)[:, None])
    z = z / tl.sum(z, 1)[:, None]

    left_z += image * left_image
    left_product += image * left_image
    zw = z
    if WEIGHTED:
        w = tl.load(weight + batch * weight_batch + head * weight_head + n * weight_row, n_inside, 0.0)
        zw = z * w[:, None]
    if HAS_SUMS:
        power = tl.load(grad_sums_power + image * K + k, k_inside, 0.0)
        grad_z = grad_z * power[None, :] + tl.load(grad_mass + image * K + k, k_inside, 0.0)[None, :]
        if WEIGHTED:
            grad_z *= w[:, None]
        zw *= power[None, :]
    if STORE_Z:
        store_columns(left_z, n, left_row, n_inside, k, zw, K, BLOCK_K)
    if HAS_VALUES:
        grad_y += batch * grad_y_batch + head * grad_y_head
        value_bases += image * value_bases_image
        for start in range(0, CV, BLOCK_C):
            c = start + tl.arange(0, BLOCK_C)
            grads = load_features(grad_y, n, grad_y_row, n_inside, c, grad_y_channel, CV, BLOCK_C)
            tile = load_bases(value_bases, c, k, CV, K, BLOCK_C, BLOCK_K)
            grad_z = tl.dot(grads, tile, grad_z, input_precision=PRECISION)
    if HAS_SUMS or HAS_VALUES:
        grad_logits = z * (grad_z - tl.sum(z * grad_z, 1)[:, None])
        store_columns(left_product, n, left_row, n_inside, k, scale * grad_logits, K, BLOCK_K)
        if BIASED:
            total = tl.sum(tl.where(n_inside[:, None], grad_logits, 0.0), 0)
            tl.store(grad_bias + tl.program_id(0).to(tl.int64) * K + k, total, k_inside)


@triton.jit(do_not_specialize=["positions", "heads", "tiles_per_split", "splits"])
def moment_kernel(
    left,
    left_image,
    left_row,
    x,
    x_batch,
    x_head,
    x_row,
    x_channel,
    partial,
    positions,
    heads,
    tiles_per_split,
    splits,
    C: tl.constexpr,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The part of left^T x that the rows of one split give: `partial` [I, splits, K, C] in float32."""
    CHUNKS: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    slot = (tl.program_id(0) // CHUNKS).to(tl.int64)
    image, split = slot // splits, slot % splits
    c = tl.program_id(0) % CHUNKS * BLOCK_C + tl.arange(0, BLOCK_C)
    k = tl.arange(0, BLOCK_K)
    left += image * left_image
    x += image // heads * x_batch + image % heads * x_head
    last = tl.minimum((split + 1) * tiles_per_split, tl.cdiv(positions, BLOCK_N))
    # transposed, the accumulator of [C, K] = [512, 64] stays in registers
    moment = tl.zeros((BLOCK_K, BLOCK_C), tl.float32)
    for tile in range(split * tiles_per_split, last):
        n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        n_inside = n < positions
        features = load_features(x, n, x_row, n_inside, c, x_channel, C, BLOCK_C)
        rows = load_features(left, n, left_row, n_inside, k, 1, K, BLOCK_K)
        moment = tl.dot(tl.trans(rows), features, moment, input_precision=PRECISION)
    inside = (k < K)[:, None] & (c < C)[None, :]
    tl.store(partial + slot * (K * C) + k[:, None] * C + c[None, :], moment, mask=inside)


@triton.jit(do_not_specialize=["heads", "slots"])
def finish_kernel(
    partial,
    partial_image,
    partial_slot,
    partial_base,
    partial_channel,
    extra,
    extra_batch,
    extra_head,
    extra_channel,
    extra_base,
    bases,
    mass,
    length,
    grad_mass,
    total_out,
    right,
    right_image,
    power_out,
    heads,
    slots,
    eps,
    C: tl.constexpr,
    K: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    EPS_ADD: tl.constexpr,
    HAS_EXTRA: tl.constexpr,
    NORMALIZE: tl.constexpr,
    TO_RIGHT: tl.constexpr,
):
    """One base of one image: the slots of a moment added in a fixed order, and `extra` [B, H, C, K] if there is one.

    NORMALIZE takes the sum as the gradient of `bases` [I, C, K] and goes back through their normalisation, giving the
    gradient of the sums and `grad_mass` [I, K]. The result becomes a row of `right` with `power_out` [I, K] if
    TO_RIGHT, else `total_out` [I, C, K] in float32.
    """
    image = (tl.program_id(0) // K).to(tl.int64)
    k = tl.program_id(0) % K
    column = image * K + k
    c = tl.arange(0, BLOCK_CHANNELS)
    inside = c < C
    partial += image * partial_image + k * partial_base
    total = tl.zeros((BLOCK_CHANNELS,), tl.float32)
    for first in range(0, slots, BLOCK_SLOTS):
        slot = first + tl.arange(0, BLOCK_SLOTS)
        pointers = partial + slot[:, None].to(tl.int64) * partial_slot + c[None, :] * partial_channel
        total += tl.sum(tl.load(pointers, mask=(slot < slots)[:, None] & inside[None, :], other=0.0), 0)
    if HAS_EXTRA:
        extra += image // heads * extra_batch + image % heads * extra_head + k * extra_base
        total += tl.load(extra + c * extra_channel, inside, 0.0).to(tl.float32)
    if NORMALIZE:
        m = tl.load(bases + image * (C * K) + c * K + k, inside, 0.0)
        s = tl.load(mass + column)
        norm = tl.load(length + column)
        inverse_mass, inverse_norm = inverse(s, eps, EPS_ADD), inverse(norm, eps, EPS_ADD)
        along = tl.sum(m * total, 0)
        # a dead base (length 0) has no direction to lose
        moves = norm > (0.0 if EPS_ADD else eps)
        radial = tl.where(moves, along / tl.where(moves, norm, 1.0), 0.0)
        total = (total * inverse_norm - m * radial) * inverse_mass
        # after the L2 norm the mass matters only through eps: written so that nothing cancels
        if EPS_ADD:
            grad_s = -along * eps * inverse_norm * inverse_mass
        else:
            grad_s = tl.where((norm <= eps) & (s > eps), -along * inverse_mass, 0.0)
        tl.store(grad_mass + column, grad_s)
    if TO_RIGHT:
        power = power_of_two(tl.max(tl.abs(total), 0))
        tl.store(right + image * right_image + k * C + c, (total / power).to(right.dtype.element_ty), inside)
        tl.store(power_out + column, power)
    else:
        tl.store(total_out + image * (C * K) + c * K + k, total, inside)


@triton.jit(do_not_specialize=["positions", "heads"])
def grad_features_kernel(
    left,
    right,
    grad_x,
    grad_x_batch,
    grad_x_head,
    grad_x_row,
    grad_x_channel,
    positions,
    heads,
    rank,
    C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    EVEN_R: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """grad_x = left [I, N, rank] times right [I, rank, C], written once."""
    CHUNKS: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    tiles = tl.cdiv(positions, BLOCK_N)
    tile = tl.program_id(0) // CHUNKS
    image = (tile // tiles).to(tl.int64)
    n = (tile % tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.program_id(0) % CHUNKS * BLOCK_C + tl.arange(0, BLOCK_C)
    n_inside, c_inside = n < positions, c < C
    left += image * positions * rank
    right += image * rank * C
    product = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for start in range(0, rank, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        r_inside = r < rank
        if EVEN_R:
            rows = tl.load(left + n[:, None] * rank + r[None, :], mask=n_inside[:, None], other=0.0)
        else:
            inside = n_inside[:, None] & r_inside[None, :]
            rows = tl.load(left + n[:, None] * rank + r[None, :], mask=inside, other=0.0)
        pointers = right + r[:, None].to(tl.int64) * C + c[None, :]
        if EVEN_R and C % BLOCK_C == 0:
            columns = tl.load(pointers)
        else:
            columns = tl.load(pointers, mask=r_inside[:, None] & c_inside[None, :], other=0.0)
        product = tl.dot(rows, columns, product, input_precision=PRECISION)
    grad_x += image // heads * grad_x_batch + image % heads * grad_x_head
    pointers = grad_x + n[:, None] * grad_x_row + c[None, :].to(tl.int64) * grad_x_channel
    tl.store(pointers, product.to(grad_x.dtype.element_ty), mask=n_inside[:, None] & c_inside[None, :])
