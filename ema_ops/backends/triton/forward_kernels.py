"""The kernels of the forward pass. Every program works on one image (one head of one image) and on no other.

`fused_step` keeps a tile of x on chip for both halves of an iteration, but needs accumulators for all of C x K.
Beyond that `e_step` stores the responsibilities and `m_step` sums over them, one chunk of channels a program.
16-bit tiles are float32 between a load or product and the next product or store.
"""

from __future__ import annotations

import triton.language as tl

from .tiles import (
    image_pointer,
    kernel,
    load_bases,
    position_count,
    position_weights,
    responsibilities_mask,
    softmax_rows,
    tile_mask,
    tile_offsets,
)


@kernel
def fused_step(
    x,
    x_batch,
    x_head,
    x_slow,
    x_fast,
    positions,
    bases,
    bases_batch,
    bases_head,
    weight,
    weight_batch,
    weight_head,
    weight_position,
    logit_bias,
    z,
    sums,
    masses,
    heads,
    splits,
    tiles,
    scale,
    C: tl.constexpr,
    K: tl.constexpr,
    X_UNIT: tl.constexpr,
    X_CHANNELS_FIRST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One split of one image: E-step and M-step of its tiles, each loaded once.

    Writes the sums [K, C] and the mass [K] of the split, and responsibilities z [B * H, N, K] unless `z` is None. The
    accumulator is [K, C]: that way around C x K = 512 x 64 fits the registers.
    """
    image, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    N = position_count(positions, X_UNIT, X_CHANNELS_FIRST)
    c = tl.arange(0, BLOCK_C)
    k = tl.arange(0, BLOCK_K)
    x = image_pointer(x, image, heads, x_batch, x_head, X_UNIT)
    bases = image_pointer(bases, image, heads, bases_batch, bases_head, 1)
    m = load_bases(bases, c, k, C, K, BLOCK_C, BLOCK_K).to(x.dtype.element_ty)
    accumulator = tl.zeros([BLOCK_K, BLOCK_C], tl.float32)
    mass = tl.zeros([BLOCK_K], tl.float32)

    last = tl.minimum((split + 1) * tiles, tl.cdiv(N, BLOCK_N))
    for tile in range(split * tiles, last):
        n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        offsets = tile_offsets(n, c, x_slow, x_fast, X_UNIT, X_CHANNELS_FIRST)
        features = tl.load(x + offsets, mask=tile_mask(n, c, N, C, BLOCK_C), other=0.0)
        logits = scale * tl.dot(features, m, input_precision=PRECISION)
        if logit_bias is not None:
            logits += tl.load(logit_bias + image * K + k, mask=k < K, other=0.0)[None, :]
        responsibilities = softmax_rows(logits, k, K, BLOCK_K)
        if z is not None:
            rows = z + image.to(tl.int64) * N * K + n.to(tl.int64)[:, None] * K + k[None, :]
            tl.store(rows, responsibilities.to(z.dtype.element_ty), mask=responsibilities_mask(n, k, N, K, BLOCK_K))
        w = position_weights(weight, n, N, image, heads, weight_batch, weight_head, weight_position)
        weighted = responsibilities * w[:, None]
        mass += tl.sum(weighted, 0)
        weighted = weighted.to(x.dtype.element_ty)
        accumulator = tl.dot(tl.trans(weighted), features, accumulator, input_precision=PRECISION)

    slot = tl.program_id(0).to(tl.int64) * K
    inside = (k < K)[:, None] & (c < C)[None, :]
    tl.store(sums + slot * C + k[:, None] * C + c[None, :], accumulator, mask=inside)
    tl.store(masses + slot + k, mass, mask=k < K)


@kernel
def e_step(
    x,
    x_batch,
    x_head,
    x_slow,
    x_fast,
    positions,
    bases,
    bases_batch,
    bases_head,
    logit_bias,
    z,
    heads,
    scale,
    C: tl.constexpr,
    K: tl.constexpr,
    X_UNIT: tl.constexpr,
    X_CHANNELS_FIRST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of positions of one image, x in chunks of BLOCK_C channels: responsibilities z [B * H, N, K]."""
    N = position_count(positions, X_UNIT, X_CHANNELS_FIRST)
    tiles = tl.cdiv(N, BLOCK_N)
    image, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    x = image_pointer(x, image, heads, x_batch, x_head, X_UNIT)
    bases = image_pointer(bases, image, heads, bases_batch, bases_head, 1)
    logits = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for start in range(0, C, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        offsets = tile_offsets(n, c, x_slow, x_fast, X_UNIT, X_CHANNELS_FIRST)
        features = tl.load(x + offsets, mask=tile_mask(n, c, N, C, BLOCK_C), other=0.0)
        m = load_bases(bases, c, k, C, K, BLOCK_C, BLOCK_K).to(x.dtype.element_ty)
        logits = tl.dot(features, m, logits, input_precision=PRECISION)
    logits *= scale
    if logit_bias is not None:
        logits += tl.load(logit_bias + image * K + k, mask=k < K, other=0.0)[None, :]
    rows = z + image.to(tl.int64) * N * K + n.to(tl.int64)[:, None] * K + k[None, :]
    tl.store(
        rows,
        softmax_rows(logits, k, K, BLOCK_K).to(z.dtype.element_ty),
        mask=responsibilities_mask(n, k, N, K, BLOCK_K),
    )


@kernel
def m_step(
    x,
    x_batch,
    x_head,
    x_slow,
    x_fast,
    positions,
    weight,
    weight_batch,
    weight_head,
    weight_position,
    z,
    sums,
    masses,
    heads,
    splits,
    tiles,
    C: tl.constexpr,
    K: tl.constexpr,
    X_UNIT: tl.constexpr,
    X_CHANNELS_FIRST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One chunk of channels of one split of one image: its columns of the sums [K, C]; the first also the mass [K]."""
    chunks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    chunk, slot = tl.program_id(0) % chunks, tl.program_id(0) // chunks
    image, split = slot // splits, slot % splits
    N = position_count(positions, X_UNIT, X_CHANNELS_FIRST)
    c = chunk * BLOCK_C + tl.arange(0, BLOCK_C)
    k = tl.arange(0, BLOCK_K)
    x = image_pointer(x, image, heads, x_batch, x_head, X_UNIT)
    z += image.to(tl.int64) * N * K
    accumulator = tl.zeros([BLOCK_K, BLOCK_C], tl.float32)
    mass = tl.zeros([BLOCK_K], tl.float32)

    last = tl.minimum((split + 1) * tiles, tl.cdiv(N, BLOCK_N))
    for tile in range(split * tiles, last):
        n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        offsets = tile_offsets(n, c, x_slow, x_fast, X_UNIT, X_CHANNELS_FIRST)
        features = tl.load(x + offsets, mask=tile_mask(n, c, N, C, BLOCK_C), other=0.0)
        rows = z + n.to(tl.int64)[:, None] * K + k[None, :]
        responsibilities = tl.load(rows, mask=responsibilities_mask(n, k, N, K, BLOCK_K), other=0.0)
        w = position_weights(weight, n, N, image, heads, weight_batch, weight_head, weight_position)
        weighted = responsibilities.to(tl.float32) * w[:, None]
        mass += tl.sum(weighted, 0)
        weighted = weighted.to(x.dtype.element_ty)
        accumulator = tl.dot(tl.trans(weighted), features, accumulator, input_precision=PRECISION)

    slot = slot.to(tl.int64) * K
    inside = (k < K)[:, None] & (c < C)[None, :]
    tl.store(sums + slot * C + k[:, None] * C + c[None, :], accumulator, mask=inside)
    if chunk == 0:
        tl.store(masses + slot + k, mass, mask=k < K)


@kernel
def reconstruct(
    z,
    bases,
    bases_batch,
    bases_head,
    y,
    y_batch,
    y_head,
    y_slow,
    y_fast,
    positions,
    heads,
    C: tl.constexpr,
    K: tl.constexpr,
    Y_UNIT: tl.constexpr,
    Y_CHANNELS_FIRST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of positions and chunk of channels of one image: y = z [B * H, N, K] times the transposed bases."""
    chunks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    N = position_count(positions, Y_UNIT, Y_CHANNELS_FIRST)
    tiles = tl.cdiv(N, BLOCK_N)
    chunk, program = tl.program_id(0) % chunks, tl.program_id(0) // chunks
    image, tile = program // tiles, program % tiles
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    c = chunk * BLOCK_C + tl.arange(0, BLOCK_C)
    bases = image_pointer(bases, image, heads, bases_batch, bases_head, 1)
    features = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        rows = z + image.to(tl.int64) * N * K + n.to(tl.int64)[:, None] * K + k[None, :]
        responsibilities = tl.load(rows, mask=responsibilities_mask(n, k, N, K, BLOCK_K), other=0.0)
        m = load_bases(bases, c, k, C, K, BLOCK_C, BLOCK_K).to(z.dtype.element_ty)
        features = tl.dot(responsibilities, tl.trans(m), features, input_precision=PRECISION)
    y = image_pointer(y, image, heads, y_batch, y_head, Y_UNIT)
    offsets = tile_offsets(n, c, y_slow, y_fast, Y_UNIT, Y_CHANNELS_FIRST)
    tl.store(y + offsets, features.to(y.dtype.element_ty), mask=tile_mask(n, c, N, C, BLOCK_C))


@kernel
def copy_rows(
    x,
    x_batch,
    x_head,
    x_slow,
    x_fast,
    positions,
    rows,
    heads,
    C: tl.constexpr,
    X_UNIT: tl.constexpr,
    X_CHANNELS_FIRST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One tile of x into dense rows [B * H, N, C]: the transposition of an image whose rows are not aligned."""
    chunks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    N = position_count(positions, X_UNIT, X_CHANNELS_FIRST)
    tiles = tl.cdiv(N, BLOCK_N)
    chunk, program = tl.program_id(0) % chunks, tl.program_id(0) // chunks
    image, tile = program // tiles, program % tiles
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    c = chunk * BLOCK_C + tl.arange(0, BLOCK_C)
    x = image_pointer(x, image, heads, x_batch, x_head, X_UNIT)
    mask = tile_mask(n, c, N, C, BLOCK_C)
    features = tl.load(x + tile_offsets(n, c, x_slow, x_fast, X_UNIT, X_CHANNELS_FIRST), mask=mask)
    tl.store(rows + (image.to(tl.int64) * N + n.to(tl.int64))[:, None] * C + c[None, :], features, mask=mask)
