"""GPU kernels of the fused encoder, in Triton: what cuBLAS does not do, each in one pass.

Legend: T tokens of all rows back to back, B rows, D hidden size, H heads, K head size.
Sums, means, variances and exponentials are in float32; what is read and stored is bfloat16 or
float16.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

QUERIES, KEYS = 64, 64
"""Tokens of a row that a program of `attend` answers, and that it looks at in one step."""


@triton.jit
def _normalised(x_D, at, inside, scale, shift, epsilon, D: tl.constexpr):
    """Layer normalisation of one token."""
    mean = tl.sum(tl.where(inside, x_D, 0.0), 0) / D
    off_D = tl.where(inside, x_D - mean, 0.0)
    over = tl.rsqrt(tl.sum(off_D * off_D, 0) / D + epsilon)
    weight_D = tl.load(scale + at, mask=inside, other=0.0).to(tl.float32)
    bias_D = tl.load(shift + at, mask=inside, other=0.0).to(tl.float32)
    return off_D * over * weight_D + bias_D


@triton.jit
def _embed_kernel(
    ids, places, words, positions, scale, shift, out, epsilon, D: tl.constexpr, WIDE: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, WIDE)
    inside = at < D
    word = tl.load(ids + token).to(tl.int64)
    place = tl.load(places + token).to(tl.int64)
    x_D = tl.load(words + word * D + at, mask=inside, other=0.0).to(tl.float32)
    x_D += tl.load(positions + place * D + at, mask=inside, other=0.0).to(tl.float32)
    y_D = _normalised(x_D, at, inside, scale, shift, epsilon, D)
    tl.store(out + token * D + at, y_D.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _norm_kernel(x, bias, scale, shift, epsilon, D: tl.constexpr, WIDE: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, WIDE)
    inside = at < D
    x_D = tl.load(x + token * D + at, mask=inside, other=0.0).to(tl.float32)
    x_D += tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
    y_D = _normalised(x_D, at, inside, scale, shift, epsilon, D)
    tl.store(x + token * D + at, y_D.to(x.dtype.element_ty), mask=inside)


@triton.jit
def _attend_kernel(
    qkv,
    out,
    starts,
    tile_row,
    tile_first,
    log2_scale,
    H: tl.constexpr,
    K: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """One tile of queries of one row and head: softmax(q k') v, a block of keys at a time.

    Online softmax as in FlashAttention (Dao et al. 2022, algorithm 1), with powers of two.
    """
    tile, head = tl.program_id(0) // H, tl.program_id(0) % H
    row = tl.load(tile_row + tile)
    start = tl.load(starts + row)
    length = tl.load(starts + row + 1) - start
    step = 3 * H * K
    m = tl.load(tile_first + tile) + tl.arange(0, QUERIES)
    n = tl.arange(0, KEYS)
    k = tl.arange(0, K)
    base = qkv + start.to(tl.int64) * step + head * K
    q_MK = tl.load(base + m[:, None] * step + k[None, :], mask=(m < length)[:, None], other=0.0)
    at_k = base + H * K + n[None, :] * step + k[:, None]
    at_v = base + 2 * H * K + n[:, None] * step + k[None, :]
    most_M = tl.full([QUERIES], float("-inf"), tl.float32)
    sum_M = tl.zeros([QUERIES], tl.float32)
    acc_MK = tl.zeros([QUERIES, K], tl.float32)
    whole = length // KEYS * KEYS
    for first in tl.range(0, whole, KEYS):
        score_MN = tl.dot(q_MK, tl.load(at_k + first * step))
        peak_M = tl.maximum(most_M, tl.max(score_MN, 1) * log2_scale)
        p_MN = tl.exp2(score_MN * log2_scale - peak_M[:, None])
        fade_M = tl.exp2(most_M - peak_M)
        sum_M = sum_M * fade_M + tl.sum(p_MN, 1)
        v_NK = tl.load(at_v + first * step)
        acc_MK = tl.dot(p_MN.to(v_NK.dtype), v_NK, acc_MK * fade_M[:, None])
        most_M = peak_M
    if whole < length:
        left = n < length - whole
        k_KN = tl.load(at_k + whole * step, mask=left[None, :], other=0.0)
        score_MN = tl.where(left[None, :], tl.dot(q_MK, k_KN) * log2_scale, float("-inf"))
        peak_M = tl.maximum(most_M, tl.max(score_MN, 1))
        p_MN = tl.exp2(score_MN - peak_M[:, None])
        fade_M = tl.exp2(most_M - peak_M)
        sum_M = sum_M * fade_M + tl.sum(p_MN, 1)
        v_NK = tl.load(at_v + whole * step, mask=left[:, None], other=0.0)
        acc_MK = tl.dot(p_MN.to(v_NK.dtype), v_NK, acc_MK * fade_M[:, None])
    at_out = out + (start + m).to(tl.int64)[:, None] * (H * K) + head * K + k[None, :]
    y_MK = (acc_MK / sum_M[:, None]).to(out.dtype.element_ty)
    tl.store(at_out, y_MK, mask=(m < length)[:, None])


@triton.jit
def _mean_kernel(x, starts, out, D: tl.constexpr, TOKENS: tl.constexpr, WIDE: tl.constexpr):
    row = tl.program_id(0)
    at = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    inside = at < D
    start = tl.load(starts + row).to(tl.int64)
    length = tl.load(starts + row + 1) - start
    sum_D = tl.zeros([WIDE], tl.float32)
    for first in tl.range(0, length, TOKENS):
        t = first + tl.arange(0, TOKENS)
        there = (t < length)[:, None] & inside[None, :]
        x_TD = tl.load(x + (start + t)[:, None] * D + at[None, :], mask=there, other=0.0)
        sum_D += tl.sum(x_TD.to(tl.float32), 0)
    tl.store(out + row * D + at, sum_D / length, mask=inside)


def embed(
    ids_T: Tensor,
    places_T: Tensor,
    words: Tensor,
    positions: Tensor,
    scale_D: Tensor,
    shift_D: Tensor,
    epsilon: float,
) -> Tensor:
    """Layer norm of word plus position embedding, [T, D]; `ids_T`, `places_T` int32."""
    dim = words.shape[1]
    out = torch.empty(len(ids_T), dim, dtype=words.dtype, device=words.device)
    wide: Any = triton.next_power_of_2(dim)
    _embed_kernel[(len(ids_T),)](
        ids_T, places_T, words, positions, scale_D, shift_D, out, epsilon, dim, wide, num_warps=1
    )
    return out


def norm_(x_TD: Tensor, bias_D: Tensor, scale_D: Tensor, shift_D: Tensor, epsilon: float) -> Tensor:
    """Layer norm of `x + bias`, in place."""
    dim = x_TD.shape[1]
    wide: Any = triton.next_power_of_2(dim)
    _norm_kernel[(len(x_TD),)](x_TD, bias_D, scale_D, shift_D, epsilon, dim, wide, num_warps=1)
    return x_TD


def attend(
    qkv: Tensor, starts_B: Tensor, tile_row: Tensor, tile_first: Tensor, heads: int
) -> Tensor:
    """Attention within each row.

    Args:
        qkv: queries, keys and values of all heads, [T, 3 * D].
        starts_B: where each row starts, int32 [B + 1].
        tile_row: the row of each tile of at most QUERIES queries, int32 [tiles].
        tile_first: a tile's first token in its row, int32 [tiles].
        heads: H; K = D / H must be a power of two, 16 or more.

    Returns:
        [T, D].
    """
    dim = qkv.shape[1] // 3
    size = dim // heads
    out = torch.empty(len(qkv), dim, dtype=qkv.dtype, device=qkv.device)
    _attend_kernel[(len(tile_row) * heads,)](
        qkv,
        out,
        starts_B,
        tile_row,
        tile_first,
        size**-0.5 * 1.4426950408889634,  # log2(e)
        heads,
        size,
        QUERIES,
        KEYS,
        num_warps=4,
        num_stages=3,
    )
    return out


def mean(x_TD: Tensor, starts_B: Tensor) -> Tensor:
    """Mean over each row's tokens, float32 [B, D]."""
    rows, dim = len(starts_B) - 1, x_TD.shape[1]
    out = torch.empty(rows, dim, dtype=torch.float32, device=x_TD.device)
    _mean_kernel[(rows, triton.cdiv(dim, 128))](x_TD, starts_B, out, dim, 32, 128, num_warps=4)
    return out
