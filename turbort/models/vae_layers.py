"""Layers of the Wan video VAE: causal in time, so that a clip can be processed in chunks with the same result."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from turbort import ops
from turbort.models.layers import Linear
from turbort.op import slot
from turbort.ops.conv import blank_frames

ROLE = "vae"


class Stream:
    """What the layers remember between the chunks of one clip; `first` is true until a chunk has gone through."""

    def __init__(self) -> None:
        self.first = True
        self.frames: dict[str, Tensor] = {}

    def remember(self, key: str, x: Tensor, count: int) -> Tensor | None:
        """Keep the last `count` frames seen so far under `key`, zeros before the first; return those kept before, if any."""
        past = self.frames.get(key)
        recent = x[:, :, -count:]
        missing = count - recent.shape[2]
        if missing:
            before = blank_frames(x, missing) if past is None else past[:, :, -missing:]
            recent = torch.cat([before, recent], dim=2)
        self.frames[key] = recent.clone()
        return past


def name_streams(root: nn.Module) -> None:
    """Give each layer that remembers frames its path as a key."""
    for path, module in root.named_modules():
        if hasattr(module, "stream_key"):
            module.stream_key = path


class CausalConv3d(nn.Module):
    """Convolution over [B, C, T, H, W] that sees no future frame: 2 * pt frames of past (zeros before the clip)."""

    stream_key = ""

    def __init__(self, in_dim: int, out_dim: int, kernel: tuple[int, int, int], *, time_stride: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_dim, in_dim, *kernel))
        self.bias = nn.Parameter(torch.empty(out_dim))
        self.stride = (time_stride, 1, 1)
        # A strided time convolution gets its past from the caller: the frame before the chunk, never zeros.
        self.padding = (kernel[0] // 2 if time_stride == 1 else 0, kernel[1] // 2, kernel[2] // 2)
        self.op = slot(ops.causal_conv3d, ROLE)
        reset_conv(self.weight, self.bias)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        past = None
        if stream is not None and self.padding[0]:
            past = stream.remember(self.stream_key, x, 2 * self.padding[0])
        y: Tensor = self.op(x, self.weight, self.bias, cache=past, stride=self.stride, padding=self.padding)
        return y


class SpatialConv(nn.Module):
    """Weights of a 3x3 convolution per frame, as `resample.1` in Wan's files."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_dim, in_dim, 3, 3))
        self.bias = nn.Parameter(torch.empty(out_dim))
        reset_conv(self.weight, self.bias)


class Upscale(SpatialConv):
    """Nearest-neighbour doubling of rows and columns, then the convolution."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__(in_dim, out_dim)
        self.op = slot(ops.vae_upsample, ROLE)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.op(x, self.weight, self.bias)
        return y


class Downscale(SpatialConv):
    """The convolution with stride 2, one row and column of zeros at the far edges."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim)
        self.op = slot(ops.causal_conv3d, ROLE)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.op(F.pad(x, (0, 1, 0, 1)), self.weight.unsqueeze(2), self.bias, stride=(1, 2, 2))
        return y


class Upsample(nn.Module):
    """Doubles rows and columns, and time if `time`; the first frame of a clip is never doubled in time."""

    def __init__(self, dim: int, out_dim: int, *, time: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleList([nn.Identity(), Upscale(dim, out_dim)])
        self.time_conv = CausalConv3d(dim, 2 * dim, (3, 1, 1)) if time else None

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        if self.time_conv is not None:
            lead = 1 if stream is None or stream.first else 0
            parts = [x[:, :, :lead]] if lead else []
            if x.shape[2] > lead:
                parts.append(interleave(self.time_conv(x[:, :, lead:], stream)))
            x = torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]
        y: Tensor = self.resample[1](x)
        return y


class Downsample(nn.Module):
    """Halves rows and columns, and time if `time`; the first frame of a clip stays a frame of its own."""

    stream_key = ""

    def __init__(self, dim: int, *, time: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleList([nn.Identity(), Downscale(dim)])
        self.time_conv = CausalConv3d(dim, dim, (3, 1, 1), time_stride=2) if time else None

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        x = self.resample[1](x)
        if self.time_conv is None:
            return x
        first = stream is None or stream.first
        past = None if stream is None else stream.remember(self.stream_key, x, 1)
        seen = x if past is None else torch.cat([past, x], dim=2)
        if not first:
            y: Tensor = self.time_conv(seen)
            return y
        lead = x[:, :, :1]
        return torch.cat([lead, self.time_conv(seen)], dim=2) if x.shape[2] > 1 else lead


class NormSilu(nn.Module):
    """x / |x|_2 over channels * sqrt(C) * gamma, then SiLU."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, 1, 1, 1))
        self.op = slot(ops.vae_norm_silu, ROLE)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        y: Tensor = self.op(x, self.gamma)
        return y


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1x1 convolution on x where the width changes."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        # Positions as in Wan's Sequential (norm, SiLU, conv, norm, SiLU, dropout, conv); the norms here include the SiLU.
        self.residual = nn.ModuleDict(
            {
                "0": NormSilu(in_dim),
                "2": CausalConv3d(in_dim, out_dim, (3, 3, 3)),
                "3": NormSilu(out_dim),
                "6": CausalConv3d(out_dim, out_dim, (3, 3, 3)),
            }
        )
        self.shortcut = CausalConv3d(in_dim, out_dim, (1, 1, 1)) if in_dim != out_dim else None

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        # One name for all of them: each is let go as soon as the next is there, which is a sixth of the decoder's peak.
        h = self.residual["0"](x)
        h = self.residual["2"](h, stream)
        h = self.residual["3"](h)
        h = self.residual["6"](h, stream)
        y: Tensor = h + (x if self.shortcut is None else self.shortcut(x))
        return y


class FrameNorm(nn.Module):
    """x / |x|_2 over channels * sqrt(C) * gamma, tokens [N, L, C]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, 1, 1))
        self.op = slot(ops.rms_norm, ROLE)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.op(x, self.gamma.flatten(), eps=1e-12)
        return y


class FrameAttention(nn.Module):
    """x + proj(attention(norm(x))) with one head over the pixels of each frame."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = FrameNorm(dim)
        self.to_qkv = Linear(dim, 3 * dim, role=ROLE, shape=(3 * dim, dim, 1, 1))
        self.proj = Linear(dim, dim, role=ROLE, shape=(dim, dim, 1, 1))
        self.attention = slot(ops.attention, ROLE)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        b, c, t, h, w = x.shape
        tokens = x.permute(0, 2, 3, 4, 1).reshape(b * t, h * w, c)
        q, k, v = self.to_qkv(self.norm(tokens)).unsqueeze(2).chunk(3, dim=-1)
        y = self.proj(self.attention(q, k, v).flatten(2))
        added: Tensor = x + y.reshape(b, t, h, w, c).permute(0, 4, 1, 2, 3)
        return added


def head(dim: int, out_dim: int) -> nn.ModuleDict:
    """Norm with SiLU and the last convolution, at the positions of Wan's Sequential."""
    return nn.ModuleDict({"0": NormSilu(dim), "2": CausalConv3d(dim, out_dim, (3, 3, 3))})


def run(layers: Iterable[nn.Module], x: Tensor, stream: Stream | None) -> Tensor:
    """The layers one after the other."""
    for layer in layers:
        x = layer(x, stream)
    return x


def middle(dim: int) -> nn.ModuleList:
    """Residual block, attention, residual block."""
    return nn.ModuleList([ResidualBlock(dim, dim), FrameAttention(dim), ResidualBlock(dim, dim)])


def interleave(x: Tensor) -> Tensor:
    """[B, 2C, T, H, W] -> [B, C, 2T, H, W]: the two halves of the channels become neighbouring frames."""
    b, c, t, h, w = x.shape
    return x.view(b, 2, c // 2, t, h, w).permute(0, 2, 3, 1, 4, 5).reshape(b, c // 2, 2 * t, h, w)


def reset_conv(weight: Tensor, bias: Tensor) -> None:
    """The initialisation of torch's convolutions: uniform within 1 / sqrt(fan in)."""
    if weight.device.type != "meta":
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        bound = 1 / math.sqrt(weight[0].numel())
        nn.init.uniform_(bias, -bound, bound)
