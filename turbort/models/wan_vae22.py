"""The Wan 2.2 video VAE of TI2V-5B: 16x16 pixels and 4 frames per latent, 48 channels.

It differs from the Wan 2.1 VAE in three ways: 2x2 pixels are folded into channels first; levels carry a shortcut that
averages (down) or repeats (up) values without weights; encoder and decoder have widths of their own. Parameter names are
those of `Wan2.2_VAE.pth`.
"""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from turbort.models.config import VaeConfig
from turbort.models.vae_layers import CausalConv3d, Downsample, ResidualBlock, Stream, Upsample, head, middle, run
from turbort.models.wan_vae import PIXELS, WanVae


class WanVae22(WanVae):
    """As `WanVae`, with latents [B, 48, 1 + (T - 1) / 4, H / 16, W / 16]."""

    def build_encoder(self, config: VaeConfig) -> nn.Module:
        return Encoder(config)

    def build_decoder(self, config: VaeConfig) -> nn.Module:
        return Decoder(config)

    def fold(self, video: Tensor) -> Tensor:
        """[B, C, T, pH, pW] -> [B, C * p * p, T, H, W], channels ordered (C, column, row)."""
        b, c, t, h, w = video.shape
        p = self.config.pixel_patch
        x = video.reshape(b, c, t, h // p, p, w // p, p).permute(0, 1, 6, 4, 2, 3, 5)
        return x.reshape(b, c * p * p, t, h // p, w // p)

    def unfold(self, pixels: Tensor) -> Tensor:
        b, c, t, h, w = pixels.shape
        p = self.config.pixel_patch
        x = pixels.reshape(b, c // (p * p), p, p, t, h, w).permute(0, 1, 4, 5, 3, 6, 2)
        return x.reshape(b, c // (p * p), t, h * p, w * p)


class Encoder(nn.Module):
    """Folded pixels to [B, 2z, ...]."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = [config.base_dim * m for m in (1, *config.dim_mult)]
        self.conv1 = CausalConv3d(PIXELS * config.pixel_patch**2, widths[0], (3, 3, 3))
        self.downsamples = nn.ModuleList(
            [
                DownLevel(a, b, config.res_blocks, halve=i < len(config.dim_mult) - 1, time=i in _timed(config))
                for i, (a, b) in enumerate(pairwise(widths))
            ]
        )
        self.middle = middle(widths[-1])
        self.head = head(widths[-1], 2 * config.z_dim)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        return run([self.conv1, *self.downsamples, *self.middle, *self.head.values()], x, stream)


class Decoder(nn.Module):
    """Latents to folded pixels."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        base, last = config.decoder_base_dim or config.base_dim, len(config.dim_mult) - 1
        widths = [base * m for m in (config.dim_mult[-1], *reversed(config.dim_mult))]
        self.conv1 = CausalConv3d(config.z_dim, widths[0], (3, 3, 3))
        self.middle = middle(widths[0])
        self.upsamples = nn.ModuleList(
            [
                UpLevel(a, b, config.res_blocks + 1, double=i < last, time=last - 1 - i in _timed(config))
                for i, (a, b) in enumerate(pairwise(widths))
            ]
        )
        self.head = head(widths[-1], PIXELS * config.pixel_patch**2)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        return run([self.conv1, *self.middle, *self.upsamples, *self.head.values()], x, stream)


class DownLevel(nn.Module):
    """Residual blocks and a downsample, plus the block averages of the input."""

    def __init__(self, in_dim: int, out_dim: int, blocks: int, *, halve: bool, time: bool) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.factor = (2 if time else 1, 2 if halve else 1)
        layers: list[nn.Module] = [ResidualBlock(in_dim if i == 0 else out_dim, out_dim) for i in range(blocks)]
        self.downsamples = nn.ModuleList([*layers, Downsample(out_dim, time=time)] if halve else layers)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        return run(self.downsamples, x, stream) + average_down(x, self.out_dim, *self.factor)


class UpLevel(nn.Module):
    """Residual blocks and an upsample, plus the input's values repeated."""

    def __init__(self, in_dim: int, out_dim: int, blocks: int, *, double: bool, time: bool) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.factor = (2 if time else 1, 2) if double else None
        layers: list[nn.Module] = [ResidualBlock(in_dim if i == 0 else out_dim, out_dim) for i in range(blocks)]
        self.upsamples = nn.ModuleList([*layers, Upsample(out_dim, out_dim, time=time)] if double else layers)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        y = run(self.upsamples, x, stream)
        if self.factor is None:
            return y
        return y + repeat_up(x, self.out_dim, *self.factor, first=stream is None or stream.first)


def average_down(x: Tensor, out_dim: int, time: int, space: int) -> Tensor:
    """Fold (time, space, space) neighbours into channels, then average groups of channels down to `out_dim`.

    A clip that does not divide evenly is preceded by zero frames: its first frame shares a pair with zeros.
    """
    x = F.pad(x, (0, 0, 0, 0, -x.shape[2] % time, 0))
    b, c, t, h, w = x.shape
    x = x.reshape(b, c, t // time, time, h // space, space, w // space, space).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(b, out_dim, -1, t // time, h // space, w // space).mean(dim=2)


def repeat_up(x: Tensor, out_dim: int, time: int, space: int, *, first: bool) -> Tensor:
    """Repeat channels, then unfold them into (time, space, space) neighbours; a clip's first frame is not doubled."""
    b, c, t, h, w = x.shape
    x = x.repeat_interleave(out_dim * time * space * space // c, dim=1)
    x = x.reshape(b, out_dim, time, space, space, t, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
    x = x.reshape(b, out_dim, t * time, h * space, w * space)
    return x[:, :, time - 1 :] if first else x


def _timed(config: VaeConfig) -> set[int]:
    return {level for level, halved in enumerate(config.temporal_downsample) if halved}
