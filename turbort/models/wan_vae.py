"""The Wan 2.1 video VAE: 1 + 4k frames of [3, 8h, 8w] pixels to 1 + k frames of [16, h, w] latents and back.

Every layer is causal in time. A clip can therefore be passed through whole, as training does, or in chunks with the
frames that the convolutions still need kept in a `Stream`: the result is the same, and memory does not grow with length.
The first frame stands alone: it is one latent frame, and each latent frame after it is four frames of video.

Parameter names are those of `Wan2.1_VAE.pth`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from turbort.errors import InputError
from turbort.models.config import VaeConfig
from turbort.models.vae_layers import (
    CausalConv3d,
    Downsample,
    ResidualBlock,
    Stream,
    Upsample,
    head,
    middle,
    name_streams,
    run,
)

PIXELS = 3


class Encoder(nn.Module):
    """Pixels [B, 3, T, H, W] to [B, 2z, ...]: mean and log-variance before the last 1x1 convolution."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = [config.base_dim * m for m in (1, *config.dim_mult)]
        self.conv1 = CausalConv3d(PIXELS, widths[0], (3, 3, 3))
        self.downsamples = nn.ModuleList(_encoder_levels(config, widths))
        self.middle = middle(widths[-1])
        self.head = head(widths[-1], 2 * config.z_dim)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        return run([self.conv1, *self.downsamples, *self.middle, *self.head.values()], x, stream)


class Decoder(nn.Module):
    """Latents [B, z, T, h, w], after the first 1x1 convolution, to pixels."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        base = config.decoder_base_dim or config.base_dim
        widths = [base * m for m in (config.dim_mult[-1], *reversed(config.dim_mult))]
        self.conv1 = CausalConv3d(config.z_dim, widths[0], (3, 3, 3))
        self.middle = middle(widths[0])
        self.upsamples = nn.ModuleList(_decoder_levels(config, widths))
        self.head = head(widths[-1], PIXELS)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        return run([self.conv1, *self.middle, *self.upsamples, *self.head.values()], x, stream)


class WanVae(nn.Module):
    """Encoder and decoder with latent normalisation.

    Pixels are [B, 3, T, H, W] in [-1, 1]; latents are [B, z, 1 + (T - 1) / 4, H / 8, W / 8], normalised to
    (latent - mean) / std per channel. `encode` and `decode` take whole clips and let gradients through;
    `encode_stream` and `decode_stream` work in chunks with bounded memory and give the same values.
    """

    # Parameters that only encoding reads, by the beginning of their name; a video made from text alone needs none of them.
    encoding = ("encoder.", "conv1.")

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = self.build_encoder(config)
        self.conv1 = CausalConv3d(2 * config.z_dim, 2 * config.z_dim, (1, 1, 1))
        self.conv2 = CausalConv3d(config.z_dim, config.z_dim, (1, 1, 1))
        self.decoder = self.build_decoder(config)
        name_streams(self)

    def build_encoder(self, config: VaeConfig) -> nn.Module:
        return Encoder(config)

    def build_decoder(self, config: VaeConfig) -> nn.Module:
        return Decoder(config)

    def moments(self, video: Tensor, stream: Stream | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latents before normalisation; the log-variance is clamped to [-30, 20]."""
        mean, log_variance = self.conv1(self.encoder(self.fold(video), stream)).chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def encode(self, video: Tensor) -> Tensor:
        """Normalised latents (the mean of the posterior) of a whole clip [B, 3, 1 + 4k, H, W]."""
        self._check(video)
        return self.normalize(self.moments(video)[0])

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels of a whole clip of normalised latents; not clamped, so that a loss sees every error."""
        return self._decode(self.denormalize(latents), None)

    def encode_stream(self, video: Tensor) -> Iterator[Tensor]:
        """Normalised latents, one frame at a time: the first video frame, then every four."""
        self._check(video)
        stream = Stream()
        step = self.config.stride[0]
        for start in (0, *range(1, video.shape[2], step)):
            chunk = video[:, :, start : start + (step if start else 1)]
            yield self.normalize(self.moments(chunk, stream)[0])
            stream.first = False

    def decode_stream(self, latents: Tensor | Iterable[Tensor], *, chunk: int = 1) -> Iterator[Tensor]:
        """Pixels in [-1, 1], `chunk` latent frames at a time: 1 + 4 (chunk - 1) video frames, then 4 * chunk each.

        `latents` is [B, z, T, h, w], or an iterable of such chunks as they become available.
        """
        stream = Stream()
        if isinstance(latents, Tensor):
            # At once: the channels' statistics come from the host, and a device would be waited for at every chunk.
            parts: Iterable[Tensor] = torch.split(self.denormalize(latents), chunk, dim=2)
        else:
            parts = map(self.denormalize, latents)
        for part in parts:
            yield self._decode(part, stream).clamp(-1.0, 1.0)
            stream.first = False

    def forward(self, latents: Tensor) -> Tensor:
        return self.decode(latents)

    def fold(self, video: Tensor) -> Tensor:
        """Pixels as the encoder wants them."""
        return video

    def unfold(self, pixels: Tensor) -> Tensor:
        """The inverse of `fold`, on the decoder's output."""
        return pixels

    def normalize(self, latents: Tensor) -> Tensor:
        """(latent - mean) / std per channel."""
        mean, std = self._statistics(latents)
        return (latents - mean) / std

    def denormalize(self, latents: Tensor) -> Tensor:
        """latent * std + mean per channel."""
        mean, std = self._statistics(latents)
        return latents * std + mean

    def _decode(self, latents: Tensor, stream: Stream | None) -> Tensor:
        """Pixels of latents that are not normalised."""
        return self.unfold(self.decoder(self.conv2(latents), stream))

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.config.mean or (0.0,) * self.config.z_dim
        std = self.config.std or (1.0,) * self.config.z_dim
        shape = (1, self.config.z_dim, 1, 1, 1)
        return like.new_tensor(mean).view(shape), like.new_tensor(std).view(shape)

    def _check(self, video: Tensor) -> None:
        t, h, w = self.config.stride
        _, _, frames, height, width = video.shape
        if (frames - 1) % t or height % h or width % w:
            raise InputError(
                f"cannot encode {frames} frames of {width}x{height} pixels",
                tried=[f"frames must be 1 + {t}k, the height a multiple of {h} and the width a multiple of {w}"],
                fix=f"use {1 + (frames - 1) // t * t} frames of {width // w * w}x{height // h * h}",
            )


def _encoder_levels(config: VaeConfig, widths: list[int]) -> Iterator[nn.Module]:
    last = len(config.dim_mult) - 1
    for level, (in_dim, out_dim) in enumerate(pairwise(widths)):
        for i in range(config.res_blocks):
            yield ResidualBlock(in_dim if i == 0 else out_dim, out_dim)
        if level != last:
            yield Downsample(out_dim, time=config.temporal_downsample[level])


def _decoder_levels(config: VaeConfig, widths: list[int]) -> Iterator[nn.Module]:
    last = len(config.dim_mult) - 1
    for level, (in_dim, out_dim) in enumerate(pairwise(widths)):
        # Every upsample but the one before the last level halves the width it hands on.
        in_dim = in_dim // 2 if level else in_dim
        for i in range(config.res_blocks + 1):
            yield ResidualBlock(in_dim if i == 0 else out_dim, out_dim)
        if level != last:
            yield Upsample(out_dim, out_dim // 2, time=config.temporal_downsample[last - 1 - level])


def decode_clip(vae: WanVae, latents: Tensor, *, chunk: int = 1) -> Tensor:
    """All frames of `decode_stream` in one tensor."""
    return torch.cat(list(vae.decode_stream(latents, chunk=chunk)), dim=2)
