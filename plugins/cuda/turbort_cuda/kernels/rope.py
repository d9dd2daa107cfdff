"""RMSNorm over the full width, then rotation of interleaved pairs, in one pass over queries or keys."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from turbort.errors import InputError
from turbort_cuda.kernels.quant import warps_for
from turbort_cuda.launch import on, rows_of


@triton.jit
def rope_kernel(
    x, weight, cos, sin, out, D, length, eps, stride_x, stride_cb, stride_cl, stride_sb, stride_sl,
    HALF: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """One token: 2 * PAIRS >= D values in registers; HALF = head_dim / 2 angles, the same for every head."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, 2 * PAIRS)
    here = cols < D
    v = tl.load(x + row * stride_x + cols, mask=here, other=0.0).to(tl.float32)
    w = tl.load(weight + cols, mask=here, other=0.0).to(tl.float32)
    v = v * tl.rsqrt(tl.sum(v * v, axis=0) / D + eps) * w
    even, odd = tl.split(tl.reshape(v, (PAIRS, 2)))
    pair = tl.arange(0, PAIRS)
    real = pair < D // 2
    batch = row // length
    place = row % length
    c = tl.load(cos + batch * stride_cb + place * stride_cl + pair % HALF, mask=real, other=0.0).to(tl.float32)
    s = tl.load(sin + batch * stride_sb + place * stride_sl + pair % HALF, mask=real, other=0.0).to(tl.float32)
    turned = tl.reshape(tl.join(even * c - odd * s, even * s + odd * c), (2 * PAIRS,))
    tl.store(out + row * D + cols, turned.to(out.dtype.element_ty), mask=here)


def qk_norm_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, *, heads: int, eps: float = 1e-6) -> Tensor:
    """`turbort.ops.qk_norm_rope`. Raises InputError when the width is not a multiple of 2 * heads."""
    batch, length, width = x.shape
    if width % (2 * heads):
        raise InputError(f"width {width} does not split into {heads} heads of even size")
    rows = rows_of(x)
    out = torch.empty((batch, length, heads, width // heads), dtype=x.dtype, device=x.device)
    c, s = (t.contiguous() if t.stride(-1) != 1 else t for t in (cos, sin))
    strides = [(t.stride(0) if t.dim() == 3 and t.shape[0] > 1 else 0, t.stride(-2)) for t in (c, s)]
    pairs = triton.next_power_of_2(width) // 2
    if rows.shape[0]:
        with on(x.device):
            rope_kernel[(rows.shape[0],)](
                rows, weight.contiguous(), c, s, out, width, length, eps, rows.stride(0), *strides[0], *strides[1],
                width // heads // 2, pairs, num_warps=warps_for(2 * pairs),
            )  # fmt: skip
    return out
