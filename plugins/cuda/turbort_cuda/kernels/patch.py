"""Cutting latents into patch tokens in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from turbort.errors import InputError
from turbort_cuda.launch import on


@triton.jit
def patchify_kernel(
    x, out, C, L, t, h, w, stride_b, stride_c, stride_t, stride_h, stride_w,
    PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """ROWS tokens of one batch item: features in (C, pt, ph, pw) order, tokens in (t, h, w) order."""
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    batch = tl.program_id(1).to(tl.int64)
    feature = tl.arange(0, WIDTH)[None, :]
    features = C * PT * PH * PW
    inside = (token < L) & (feature < features)
    channel = feature // (PT * PH * PW)
    ft = token // (h * w) * PT + feature // (PH * PW) % PT
    fh = token // w % h * PH + feature // PW % PH
    fw = token % w * PW + feature % PW
    source = x + batch * stride_b + channel * stride_c + ft * stride_t + fh * stride_h + fw * stride_w
    tl.store(out + (batch * L + token) * features + feature, tl.load(source, mask=inside, other=0.0), mask=inside)


def patchify(x: Tensor, *, patch: tuple[int, int, int] = (1, 2, 2)) -> Tensor:
    """`turbort.ops.patchify`. Raises InputError when T, H, W are not multiples of the patch."""
    b, c, t, h, w = x.shape
    pt, ph, pw = patch
    if t % pt or h % ph or w % pw:
        raise InputError(f"latent of {t}x{h}x{w} (frames x height x width) is not a multiple of patch {pt}x{ph}x{pw}")
    grid = t // pt, h // ph, w // pw
    tokens, features = grid[0] * grid[1] * grid[2], c * pt * ph * pw
    out = torch.empty((b, tokens, features), dtype=x.dtype, device=x.device)
    width = triton.next_power_of_2(features)
    rows = max(1, 2048 // width)
    if out.numel():
        with on(x.device):
            patchify_kernel[triton.cdiv(tokens, rows), b](x, out, c, tokens, *grid, *x.stride(), *patch, width, rows)
    return out
