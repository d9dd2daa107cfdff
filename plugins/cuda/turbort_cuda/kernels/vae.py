"""The VAE on a GPU: channels innermost, convolutions by cuDNN, norm and SiLU in one pass, upsampling at the low resolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from turbort.ops.conv import Size3
from turbort.ops.upsample_phases import phase_weights
from turbort_cuda.kernels.kept import kept
from turbort_cuda.kernels.room import joined, with_room
from turbort_cuda.launch import on

INNER = torch.channels_last_3d
VALUES = 4096
"""Values that one program of the norm holds."""


def _laid_out(weight: Tensor, dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
    if weight.dtype == dtype and weight.is_contiguous(memory_format=layout):
        return weight
    return kept(weight, dtype, str(layout), lambda: weight.to(dtype).contiguous(memory_format=layout))


def _taps(weight: Tensor, dtype: torch.dtype) -> Tensor:
    def make() -> Tensor:
        return phase_weights(weight).flatten(0, 2).to(dtype).contiguous(memory_format=torch.channels_last)

    return kept(weight, dtype, "phases", make)


@triton.jit
def norm_silu_kernel(x, gamma, out, M, C, stride, root, eps, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """ROWS of M pixels with C channels each: silu(x / max(|x|, eps) * sqrt(C) * gamma). `stride`: of `out`'s batch."""
    batch = tl.program_id(1).to(tl.int64)
    x += batch * M * C
    out += batch * stride
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, WIDTH)
    inside = (rows < M)[:, None] & (cols < C)[None, :]
    place = rows[:, None] * C + cols[None, :]
    v = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    gain = tl.load(gamma + cols, mask=cols < C, other=0.0).to(tl.float32) * root
    v = v / tl.maximum(tl.sqrt(tl.sum(v * v, axis=1)), eps)[:, None] * gain[None, :]
    tl.store(out + place, (v / (1.0 + tl.exp(-v))).to(out.dtype.element_ty), mask=inside)


def vae_norm_silu(x: Tensor, gamma: Tensor, *, eps: float = 1e-12) -> Tensor:
    """`turbort.ops.vae_norm_silu` on [B, C, T, H, W]; channels innermost, with room for the next convolution's past."""
    x = x.contiguous(memory_format=INNER)
    batch, channels = x.shape[:2]
    out = with_room(x)
    pixels = x[0, 0].numel() if x.numel() else 0
    width = triton.next_power_of_2(channels)
    rows = max(1, VALUES // width)
    if pixels:
        with on(x.device):
            norm_silu_kernel[(triton.cdiv(pixels, rows), batch)](
                x, gamma.contiguous(), out, pixels, channels, out.stride(0), channels**0.5, eps, width, rows, num_warps=4
            )
    return out


def causal_conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    cache: Tensor | None = None,
    stride: Size3 = (1, 1, 1),
    padding: Size3 = (0, 0, 0),
) -> Tensor:
    """`turbort.ops.causal_conv3d` with channels innermost, which cuDNN's tensor-core convolutions want; see `room`."""
    pt, ph, pw = padding
    x = joined(x, cache, 2 * pt) if pt else x.contiguous(memory_format=INNER)
    return F.conv3d(
        x, _laid_out(weight, x.dtype, INNER), None if bias is None else bias.to(x.dtype), stride=stride, padding=(0, ph, pw)
    )


def vae_upsample(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`turbort.ops.vae_upsample` as one 2x2 convolution per output phase: 4 products per output instead of 9.

    The taps that meet the same input pixel are added up in float32 first; see `turbort.ops.upsample_phases`.
    """
    b, c, t, h, w = x.shape
    outputs = weight.shape[0]
    frames = x.transpose(1, 2).reshape(b * t, c, h, w).contiguous(memory_format=torch.channels_last)
    y = torch.unflatten(F.conv2d(frames, _taps(weight, x.dtype), bias.to(x.dtype).repeat(4), padding=1), 1, (2, 2, outputs))
    out = torch.empty((b * t, outputs, 2 * h, 2 * w), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    for row in (0, 1):
        for column in (0, 1):
            out[:, :, row::2, column::2] = y[:, row, column, :, row : row + h, column : column + w]
    return out.view(b, t, outputs, 2 * h, 2 * w).transpose(1, 2)
