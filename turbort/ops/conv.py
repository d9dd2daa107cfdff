"""The ops of the Wan VAE: causal 3D convolution, channel RMS norm with SiLU, and spatial upsampling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from turbort.op import op
from turbort.ops._numeric import convolution_dtype, wide
from turbort.ops.samples_conv import causal_conv3d_samples, vae_norm_silu_samples, vae_upsample_samples

Size3 = tuple[int, int, int]


@op(samples=causal_conv3d_samples)
def causal_conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    cache: Tensor | None = None,
    stride: Size3 = (1, 1, 1),
    padding: Size3 = (0, 0, 0),
) -> Tensor:
    """3D convolution that sees no future frame.

    x [B, C, T, H, W]; weight [O, C, kt, kh, kw]; padding (pt, ph, pw): 2*pt frames go in front of x, the last
    of them from `cache` [B, C, <=2pt, H, W] (the frames before x), zeros before those; space is zero-padded by
    ph and pw on both sides. `cache` is ignored when pt is 0. Returns [B, O, T', H', W'] in x's dtype.
    """
    pt, ph, pw = padding
    if pt:
        x = torch.cat((front_frames(x, cache, 2 * pt), x), dim=2)
    dtype = convolution_dtype(x)
    bias = None if bias is None else bias.to(dtype)
    y = F.conv3d(x.to(dtype), weight.to(dtype), bias, stride=stride, padding=(0, ph, pw))
    return y.to(x.dtype)


def front_frames(x: Tensor, cache: Tensor | None, count: int) -> Tensor:
    """The `count` frames that precede x: zeros, then the newest frames of `cache`."""
    if cache is None:
        return blank_frames(x, count)
    known = cache[:, :, -count:].to(x.dtype)
    missing = count - known.shape[2]
    return torch.cat((blank_frames(x, missing), known), dim=2) if missing else known


def blank_frames(like: Tensor, count: int) -> Tensor:
    """`count` frames of zeros before `like`."""
    b, c, _, h, w = like.shape
    return torch.zeros((b, c, count, h, w), dtype=like.dtype, device=like.device)


def joined_inner(x: Tensor, cache: Tensor | None, count: int) -> Tensor:
    """`count` frames of the past and x, channels innermost: what `cat` and a change of layout make with one copy less."""
    b, c, t, h, w = x.shape
    out = torch.empty((b, c, count + t, h, w), dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
    known = 0 if cache is None else min(count, cache.shape[2])
    out[:, :, : count - known].zero_()
    if cache is not None and known:
        out[:, :, count - known : count].copy_(cache[:, :, -known:])
    out[:, :, count:].copy_(x)
    return out


@op(samples=vae_norm_silu_samples)
def vae_norm_silu(x: Tensor, gamma: Tensor, *, eps: float = 1e-12) -> Tensor:
    """SiLU(x / max(||x||_2 over channels, eps) * sqrt(C) * gamma), in float32.

    x [B, C, ...]; gamma with C elements in any shape; returns x's shape and dtype.
    """
    channels = x.shape[1]
    full = wide(x)
    gain = wide(gamma).reshape(1, channels, *(1,) * (x.dim() - 2)) * channels**0.5
    # A sum of squares is vectorised over the inner axes where torch's vector norm is not: ten times faster on CPUs.
    norm = full.square().sum(dim=1, keepdim=True).clamp_min(eps * eps).rsqrt()
    return F.silu(full * norm * gain).to(x.dtype)


@op(samples=vae_upsample_samples)
def vae_upsample(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Nearest-exact upsampling by 2 in space, then a 3x3 convolution of every frame on its own.

    x [B, C, T, H, W]; weight [O, C, 3, 3]; bias [O]; returns [B, O, T, 2H, 2W] in x's dtype.
    """
    b, c, t, h, w = x.shape
    frames = x.transpose(1, 2).reshape(b * t, c, h, w)
    # Nearest at an exact factor of 2 only repeats pixels; doing it by repetition keeps every dtype and device.
    grown = frames.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
    dtype = convolution_dtype(x)
    y = F.conv2d(grown.to(dtype), weight.to(dtype), bias.to(dtype), padding=1).to(x.dtype)
    return y.view(b, t, *y.shape[1:]).transpose(1, 2)
