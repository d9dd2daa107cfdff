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
from turbort_cuda.kernels.quant import warps_for
from turbort_cuda.kernels.sums import folded
from turbort_cuda.launch import on, rows_of

TILE = 64
"""Values of a thread, where sums are left behind."""


@triton.jit
def rope_tile(
    x, weight, cos, sin, out, rows, batch, length, D, eps, stride_x, stride_cb, stride_cl, stride_sb, stride_sl,
    HALF: tl.constexpr, PAIRS: tl.constexpr, ROWS: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """ROWS tokens of one video, written to `out`; returns the sum of what was written, in float32 [2 * PAIRS], or zeros."""
    WIDE: tl.constexpr = 2 * PAIRS
    cols = tl.arange(0, WIDE)
    here = (rows < length)[:, None] & (cols < D)[None, :]
    row = (batch * length + rows)[:, None]
    v = tl.load(x + row * stride_x + cols[None, :], mask=here, other=0.0).to(tl.float32)
    w = tl.load(weight + cols, mask=cols < D, other=0.0).to(tl.float32)
    v = v * tl.rsqrt(tl.sum(v * v, axis=1) / D + eps)[:, None] * w[None, :]
    even, odd = tl.split(tl.reshape(v, (ROWS, PAIRS, 2)))
    pair = tl.arange(0, PAIRS)
    real = (rows < length)[:, None] & (pair < D // 2)[None, :]
    angle = (pair % HALF)[None, :]
    place = rows.to(tl.int64)[:, None]
    c = tl.load(cos + batch * stride_cb + place * stride_cl + angle, mask=real, other=0.0).to(tl.float32)
    s = tl.load(sin + batch * stride_sb + place * stride_sl + angle, mask=real, other=0.0).to(tl.float32)
    turned = tl.reshape(tl.join(even * c - odd * s, even * s + odd * c), (ROWS, WIDE)).to(out.dtype.element_ty)
    tl.store(out + row * D + cols[None, :], turned, mask=here)
    if SUMS:
        return folded(tl.where(here, turned.to(tl.float32), 0.0), ROWS, WIDE)
    else:
        return tl.zeros((WIDE,), dtype=tl.float32)


@triton.jit
def rope_kernel(
    x, weight, cos, sin, out, sums, D, length, eps, stride_x, stride_cb, stride_cl, stride_sb, stride_sl,
    HALF: tl.constexpr, PAIRS: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """A block of ROWS * PARTS tokens of one video, all heads; HALF = head_dim / 2 angles, the same for every head.

    Tile r holds the rows r, r + PARTS, r + 2 PARTS, ... of the block. The reference adds the upper half of a block to its lower
    half again and again: that sums each tile first, then tiles PARTS / 2 apart, PARTS / 4 apart, ... as the nested loops do here.
    """
    batch = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * (ROWS * PARTS)
    inner = PARTS * tl.arange(0, ROWS)
    whole = tl.zeros((2 * PAIRS,), dtype=tl.float32)
    for a in range(2 if PARTS >= 2 else 1):
        half = tl.zeros((2 * PAIRS,), dtype=tl.float32)
        for b in range(2 if PARTS >= 4 else 1):
            quarter = tl.zeros((2 * PAIRS,), dtype=tl.float32)
            for c in range(2 if PARTS >= 8 else 1):
                eighth = tl.zeros((2 * PAIRS,), dtype=tl.float32)
                for d in range(2 if PARTS >= 16 else 1):
                    sixteenth = tl.zeros((2 * PAIRS,), dtype=tl.float32)
                    for e in range(2 if PARTS >= 32 else 1):
                        thirtysecond = tl.zeros((2 * PAIRS,), dtype=tl.float32)
                        for f in range(2 if PARTS >= 64 else 1):
                            rows = first + (a + 2 * b + 4 * c + 8 * d + 16 * e + 32 * f) + inner
                            thirtysecond += rope_tile(
                                x, weight, cos, sin, out, rows, batch, length, D, eps, stride_x, stride_cb, stride_cl, stride_sb,
                                stride_sl, HALF, PAIRS, ROWS, SUMS,
                            )  # fmt: skip
                        sixteenth += thirtysecond
                    eighth += sixteenth
                quarter += eighth
            half += quarter
        whole += half
    if SUMS:
        cols = tl.arange(0, 2 * PAIRS)
        tl.store(sums + (batch * tl.num_programs(0) + tl.program_id(0)) * D + cols, whole, mask=cols < D)


DEEPEST = 64
"""Tiles of a block that `rope_kernel` has loops for."""


def tile_of(width: int, sums: bool) -> tuple[int, int]:
    """Rows of a tile and warps of a program. Alone a row takes few warps; for sums up to 4 rows take `TILE` values a thread."""
    wide = triton.next_power_of_2(width)
    if not sums:
        return 1, warps_for(wide)
    warps = max(4, min(8, wide // 512))
    return max(1, min(4, 32 * warps * TILE // wide)), warps


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
    """`turbort.ops.qk_norm_rope`; `emit` is None, `sums-64` or `sums-128`; `config` has the `rows` of a tile and the `warps`.

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
                *strides[0], *strides[1], width // heads // 2, triton.next_power_of_2(width) // 2, tile, parts, sums is not None,
                num_warps=warps,
            )  # fmt: skip
    return out if sums is None or emit is None else QTensor(emit, out, sums, x.dtype)
