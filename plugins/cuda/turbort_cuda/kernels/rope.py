"""RMSNorm over the full width, then rotation of interleaved pairs, in one pass over queries or keys.

The pass can leave sums over blocks of tokens behind (`emit="sums-64"`), which SLA's block map needs: without them it reads q and
k once more. A few programs then share a block, and rows are added in the order of `turbort.quant.sums.tree_sum`.
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
"""Values of a thread."""


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
    HALF: tl.constexpr, PAIRS: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr, SHARE: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """One of SHARE parts of a block of ROWS * PARTS tokens of one video, all heads, with the same HALF = head_dim / 2 angles.
    SUMS: the part's sum goes to `sums` [B, blocks, SHARE, D].

    Tile r of a block holds its rows r, r + PARTS, r + 2 PARTS, ... The reference adds the upper half of a block to its lower half
    again and again: that sums each tile first, then tiles PARTS / 2 apart, PARTS / 4 apart, ... as the nested loops do here, and
    at last the parts: part p has the tiles p, p + SHARE, p + 2 SHARE, ...
    """
    batch = tl.program_id(1).to(tl.int64)
    block = tl.program_id(0) // SHARE
    first = block * (ROWS * PARTS) + tl.program_id(0) % SHARE
    inner = PARTS * tl.arange(0, ROWS)
    whole = tl.zeros((2 * PAIRS,), dtype=tl.float32)
    for a in range(2 if PARTS >= 2 * SHARE else 1):
        half = tl.zeros((2 * PAIRS,), dtype=tl.float32)
        for b in range(2 if PARTS >= 4 * SHARE else 1):
            quarter = tl.zeros((2 * PAIRS,), dtype=tl.float32)
            for c in range(2 if PARTS >= 8 * SHARE else 1):
                eighth = tl.zeros((2 * PAIRS,), dtype=tl.float32)
                for d in range(2 if PARTS >= 16 * SHARE else 1):
                    rows = first + SHARE * (a + 2 * b + 4 * c + 8 * d) + inner
                    eighth += rope_tile(
                        x, weight, cos, sin, out, rows, batch, length, D, eps, stride_x, stride_cb, stride_cl, stride_sb,
                        stride_sl, HALF, PAIRS, ROWS, SUMS,
                    )  # fmt: skip
                quarter += eighth
            half += quarter
        whole += half
    if SUMS:
        cols = tl.arange(0, 2 * PAIRS)
        tl.store(sums + (batch * tl.num_programs(0) + tl.program_id(0)) * D + cols, whole, mask=cols < D)


@triton.jit
def add_parts_kernel(parts, sums, D, SHARE: tl.constexpr, WIDE: tl.constexpr):
    """Sum of SHARE rows of D values, the upper half added to the lower half again and again."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    place = (row * SHARE + tl.arange(0, SHARE))[:, None] * D + cols[None, :]
    found = tl.load(parts + place, mask=(cols < D)[None, :], other=0.0)
    tl.store(sums + row * D + cols, folded(found, SHARE, WIDE), mask=cols < D)


SHARE = 4
"""Programs that share a block: one alone has too few rows on their way. A part's sum is 1/16 of what the part reads."""
DEEPEST = 16 * SHARE
"""Tiles of a block that `rope_kernel` has loops for."""


def tile_of(width: int, sums: bool) -> tuple[int, int]:
    """Rows of a tile and warps of a program. Alone a row takes few warps; for sums up to 4 rows take `TILE` values a thread."""
    wide = triton.next_power_of_2(width)
    if not sums:
        return 1, warps_for(wide)
    warps = max(4, min(16, wide // 256)) // 2
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
    share = 1 if emit is None else min(SHARE, parts)
    if parts > DEEPEST:
        raise InputError(f"rows of {width} values leave no room for sums over {sums_rows(str(emit))} of them", fix="emit None")
    blocks = triton.cdiv(length, tile * parts)
    pieces = None if emit is None else torch.empty((batch, blocks, share, width), dtype=torch.float32, device=x.device)
    if rows.shape[0]:
        with on(x.device):
            rope_kernel[blocks * share, batch](
                rows, weight.contiguous(), c, s, out, weight if pieces is None else pieces, width, length, eps, rows.stride(0),
                *strides[0], *strides[1], width // heads // 2, triton.next_power_of_2(width) // 2, tile, parts, share,
                pieces is not None, num_warps=warps, maxnreg=(config or {}).get("maxnreg"),
            )  # fmt: skip
    return (
        out if pieces is None or emit is None else QTensor(emit, out, _added(pieces).view(batch, blocks, *out.shape[2:]), x.dtype)
    )


def _added(pieces: Tensor) -> Tensor:
    """[B, blocks, SHARE, D] -> [B, blocks, D]."""
    batch, blocks, share, width = pieces.shape
    if share == 1:
        return pieces
    sums = torch.empty((batch, blocks, width), dtype=torch.float32, device=pieces.device)
    if sums.numel():
        with on(pieces.device):
            add_parts_kernel[batch * blocks, triton.cdiv(width, 512)](pieces, sums, width, share, 512, num_warps=4)
    return sums
