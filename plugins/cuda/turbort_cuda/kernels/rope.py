"""RMSNorm over the full width, then rotation of interleaved pairs, in one pass over queries or keys.

The pass can leave sums over blocks of tokens behind (`emit="sums-64"`), which SLA's block map needs: without them it reads q and
k once more. A program then owns a whole block, and adds its rows in the order of `turbort.quant.sums.tree_sum`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from turbort.errors import InputError, unknown
from turbort.precision import SUMS
from turbort.quant.qtensor import QTensor
from turbort.quant.sums import sums_rows
from turbort_cuda.kernels.quant import warps_for, widths
from turbort_cuda.kernels.sums import folded
from turbort_cuda.launch import on, rows_of

TILE = 48
"""Values of a thread, where sums are left behind."""


@triton.jit
def rope_part(
    v, root, weight, cos, sin, out, rows, row, at_cos, at_sin, length, D,
    HALF: tl.constexpr, FIRST: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """WIDE columns from FIRST on, of ROWS tokens: normed, turned, written to `out`. Returns their sum in float32, or zeros."""
    cols = FIRST + tl.arange(0, WIDE)
    here = (rows < length)[:, None] & (cols < D)[None, :]
    v = v * root[:, None] * tl.load(weight + cols, mask=cols < D, other=0.0).to(tl.float32)[None, :]
    even, odd = tl.split(tl.reshape(v, (ROWS, WIDE // 2, 2)))
    pair = FIRST // 2 + tl.arange(0, WIDE // 2)
    real = (rows < length)[:, None] & (pair < D // 2)[None, :]
    angle = (pair % HALF)[None, :]
    c = tl.load(cos + at_cos[:, None] + angle, mask=real, other=0.0).to(tl.float32)
    s = tl.load(sin + at_sin[:, None] + angle, mask=real, other=0.0).to(tl.float32)
    turned = tl.reshape(tl.join(even * c - odd * s, even * s + odd * c), (ROWS, WIDE)).to(out.dtype.element_ty)
    tl.store(out + row[:, None] * D + cols[None, :], turned, mask=here)
    if SUMS:
        return folded(tl.where(here, turned.to(tl.float32), 0.0), ROWS, WIDE)
    else:
        return tl.zeros((WIDE,), dtype=tl.float32)


@triton.jit
def rope_tile(
    x, weight, cos, sin, out, rows, batch, length, D, eps, stride_x, stride_cb, stride_cl, stride_sb, stride_sl,
    HALF: tl.constexpr, WIDE: tl.constexpr, REST: tl.constexpr, ROWS: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """ROWS tokens of one video, in WIDE columns and at most REST more; returns the sums of both parts."""
    row = batch * length + rows
    first = tl.arange(0, WIDE)
    a = tl.load(x + row[:, None] * stride_x + first[None, :], mask=(rows < length)[:, None], other=0.0).to(tl.float32)
    squares = tl.sum(a * a, axis=1)
    if REST:
        second = WIDE + tl.arange(0, REST)
        here = (rows < length)[:, None] & (second < D)[None, :]
        b = tl.load(x + row[:, None] * stride_x + second[None, :], mask=here, other=0.0).to(tl.float32)
        squares += tl.sum(b * b, axis=1)
    root = tl.rsqrt(squares / D + eps)
    place = rows.to(tl.int64)
    at_cos = batch * stride_cb + place * stride_cl
    at_sin = batch * stride_sb + place * stride_sl
    left = rope_part(
        a, root, weight, cos, sin, out, rows, row, at_cos, at_sin, length, D, HALF, 0, WIDE, ROWS, SUMS
    )  # fmt: skip
    right = tl.zeros((1,), dtype=tl.float32)
    if REST:
        right = rope_part(
            b, root, weight, cos, sin, out, rows, row, at_cos, at_sin, length, D, HALF, WIDE, REST, ROWS, SUMS
        )  # fmt: skip
    return left, right


@triton.jit
def rope_kernel(
    x, weight, cos, sin, out, sums, D, length, eps, stride_x, stride_cb, stride_cl, stride_sb, stride_sl,
    HALF: tl.constexpr, WIDE: tl.constexpr, REST: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """A block of ROWS * PARTS tokens of one video, all heads; HALF = head_dim / 2 angles, the same for every head.

    Tile r holds the rows r, r + PARTS, r + 2 PARTS, ... of the block. The reference adds the upper half of a block to its lower
    half again and again: that sums each tile first, then tiles PARTS / 2 apart, PARTS / 4 apart, ... as the nested loops do here.
    """
    BOTH: tl.constexpr = REST if REST else 1
    batch = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * (ROWS * PARTS)
    inner = PARTS * tl.arange(0, ROWS)
    a0 = tl.zeros((WIDE,), dtype=tl.float32)
    b0 = tl.zeros((BOTH,), dtype=tl.float32)
    for i in range(2 if PARTS >= 2 else 1):
        a1 = tl.zeros((WIDE,), dtype=tl.float32)
        b1 = tl.zeros((BOTH,), dtype=tl.float32)
        for j in range(2 if PARTS >= 4 else 1):
            a2 = tl.zeros((WIDE,), dtype=tl.float32)
            b2 = tl.zeros((BOTH,), dtype=tl.float32)
            for k in range(2 if PARTS >= 8 else 1):
                a3 = tl.zeros((WIDE,), dtype=tl.float32)
                b3 = tl.zeros((BOTH,), dtype=tl.float32)
                for m in range(2 if PARTS >= 16 else 1):
                    a4 = tl.zeros((WIDE,), dtype=tl.float32)
                    b4 = tl.zeros((BOTH,), dtype=tl.float32)
                    for n in range(2 if PARTS >= 32 else 1):
                        a5 = tl.zeros((WIDE,), dtype=tl.float32)
                        b5 = tl.zeros((BOTH,), dtype=tl.float32)
                        for o in range(2 if PARTS >= 64 else 1):
                            rows = first + (i + 2 * j + 4 * k + 8 * m + 16 * n + 32 * o) + inner
                            left, right = rope_tile(
                                x, weight, cos, sin, out, rows, batch, length, D, eps, stride_x, stride_cb, stride_cl, stride_sb,
                                stride_sl, HALF, WIDE, REST, ROWS, SUMS,
                            )  # fmt: skip
                            a5 += left
                            b5 += right
                        a4 += a5
                        b4 += b5
                    a3 += a4
                    b3 += b4
                a2 += a3
                b2 += b3
            a1 += a2
            b1 += b2
        a0 += a1
        b0 += b1
    if SUMS:
        target = sums + (batch * tl.num_programs(0) + tl.program_id(0)) * D
        tl.store(target + tl.arange(0, WIDE), a0)
        if REST:
            cols = WIDE + tl.arange(0, REST)
            tl.store(target + cols, b0, mask=cols < D)


DEEPEST = 64
"""Tiles of a block that `rope_kernel` has loops for."""


def tile_of(width: int, sums: bool) -> tuple[int, int]:
    """Rows of a tile and warps of a program. Alone a row takes few warps; for sums up to 4 rows take `TILE` values a thread."""
    wide = triton.next_power_of_2(width)
    if not sums:
        return 1, warps_for(wide)
    warps = max(4, min(16, wide // 512))
    rows = max(1, min(4, 32 * warps * TILE // sum(widths(width))))
    return 1 << (rows.bit_length() - 1), warps


def qk_norm_rope(
    x: Tensor,
    weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    heads: int,
    eps: float = 1e-6,
    emit: str | None = None,
    config: Mapping[str, int] | None = None,
) -> Tensor | QTensor:
    """`turbort.ops.qk_norm_rope`; `emit` is None, `sums-64` or `sums-128`; `config` has the `rows` of a tile, the `warps`, and
    perhaps `maxnreg`.

    Raises InputError when the width is not a multiple of 2 * heads, or so large that no program can own a block of tokens.
    """
    batch, length, width = x.shape
    if width % (2 * heads):
        raise InputError(f"width {width} does not split into {heads} heads of even size")
    if emit not in (None, *SUMS):
        raise unknown("scheme of rotated queries and keys", str(emit), SUMS)
    rows = rows_of(x)
    out = torch.empty((batch, length, heads, width // heads), dtype=x.dtype, device=x.device)
    c, s = (t.contiguous() if t.stride(-1) != 1 else t for t in (cos, sin))
    strides = [(t.stride(0) if t.dim() == 3 and t.shape[0] > 1 else 0, t.stride(-2)) for t in (c, s)]
    tile, warps = (config["rows"], config["warps"]) if config else tile_of(width, emit is not None)
    parts = 1 if emit is None else sums_rows(emit) // tile
    if parts > DEEPEST:
        raise InputError(f"rows of {width} values leave no room for sums over {sums_rows(str(emit))} of them", fix="emit None")
    blocks = triton.cdiv(length, tile * parts)
    sums = None if emit is None else torch.empty((batch, blocks, *out.shape[2:]), dtype=torch.float32, device=x.device)
    if rows.shape[0]:
        with on(x.device):
            rope_kernel[blocks, batch](
                rows, weight.contiguous(), c, s, out, weight if sums is None else sums, width, length, eps, rows.stride(0),
                *strides[0], *strides[1], width // heads // 2, *widths(width), tile, parts, sums is not None,
                num_warps=warps, maxnreg=(config or {}).get("maxnreg"),
            )  # fmt: skip
    return out if sums is None or emit is None else QTensor(emit, out, sums, x.dtype)
