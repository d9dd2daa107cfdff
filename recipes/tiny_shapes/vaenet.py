"""The Wan VAE in plain torch for training on whole clips. Same mathematics and parameter names as `turbort.models.wan_vae`."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.tiny_shapes.common import Compiled
from recipes.tiny_shapes.config import Sizes


class CausalConv3d(nn.Conv3d):
    """Convolution that sees no future frame: zeros before the clip."""

    def __init__(self, i: int, o: int, kernel: tuple[int, int, int], *, time_stride: int = 1) -> None:
        super().__init__(i, o, kernel, (time_stride, 1, 1), (0, kernel[1] // 2, kernel[2] // 2))
        self.past = kernel[0] - 1 if time_stride == 1 else 0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 0, 0, 0, self.past, 0)) if self.past else x)


class Gamma(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(shape))


def norm(x: Tensor, gamma: Tensor) -> Tensor:
    """x / |x| over channels * sqrt(C) * gamma."""
    size = x.float().square().sum(1, keepdim=True).sqrt().clamp_min(1e-12)
    return (x.float() / size * x.shape[1] ** 0.5 * gamma).to(x.dtype)


class ResidualBlock(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.residual = nn.ModuleDict(
            {
                "0": Gamma(i, 1, 1, 1),
                "2": CausalConv3d(i, o, (3, 3, 3)),
                "3": Gamma(o, 1, 1, 1),
                "6": CausalConv3d(o, o, (3, 3, 3)),
            }
        )
        self.shortcut = CausalConv3d(i, o, (1, 1, 1)) if i != o else None


def run_residual(block: ResidualBlock, x: Tensor) -> Tensor:
    """One block; a free function, so that it can be compiled by itself."""
    r: Any = block.residual
    h = r["2"](F.silu(norm(x, r["0"].gamma)))
    h = r["6"](F.silu(norm(h, r["3"].gamma)))
    return h + (x if block.shortcut is None else block.shortcut(x))


class FrameAttention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = Gamma(dim, 1, 1)
        self.to_qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        b, c, t, h, w = x.shape
        frames = x.transpose(1, 2).flatten(0, 1)
        qkv = self.to_qkv(norm(frames, self.norm.gamma)).flatten(2).transpose(1, 2)
        y = F.scaled_dot_product_attention(*(p[:, None].contiguous() for p in qkv.chunk(3, -1)))
        y = self.proj(y[:, 0].transpose(1, 2).reshape(b * t, c, h, w))
        return x + y.unflatten(0, (b, t)).transpose(1, 2)


def per_frame(conv: nn.Module, x: Tensor) -> Tensor:
    return conv(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


class Upsample(nn.Module):
    """Doubles rows and columns, and time if `time`; the first frame is never doubled in time."""

    def __init__(self, dim: int, out: int, *, time: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleList([nn.Identity(), nn.Conv2d(dim, out, 3, padding=1)])
        self.time_conv = CausalConv3d(dim, 2 * dim, (3, 1, 1)) if time else None

    def forward(self, x: Tensor) -> Tensor:
        if self.time_conv is not None and x.shape[2] > 1:
            b, c, t, h, w = x.shape
            more = self.time_conv(x[:, :, 1:]).view(b, 2, c, t - 1, h, w).permute(0, 2, 3, 1, 4, 5)
            x = torch.cat((x[:, :, :1], more.reshape(b, c, 2 * t - 2, h, w)), 2)
        frames = F.interpolate(x.transpose(1, 2).flatten(0, 1), scale_factor=2, mode="nearest-exact")
        return self.resample[1](frames).unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


class Downsample(nn.Module):
    """Halves rows and columns, and time if `time`; the first frame stays a frame of its own."""

    def __init__(self, dim: int, *, time: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleList([nn.Identity(), nn.Conv2d(dim, dim, 3, stride=2)])
        self.time_conv = CausalConv3d(dim, dim, (3, 1, 1), time_stride=2) if time else None

    def forward(self, x: Tensor) -> Tensor:
        x = per_frame(self.resample[1], F.pad(x, (0, 1, 0, 1)))
        if self.time_conv is None or x.shape[2] == 1:
            return x
        return torch.cat((x[:, :, :1], self.time_conv(x)), 2)


class Half(nn.Module):
    """Encoder or decoder: layers in order under Wan's names, then norm, SiLU and a convolution."""

    def __init__(self, first: tuple[int, int], name: str, levels: list[nn.Module], dim: int, head: tuple[int, int]) -> None:
        super().__init__()
        self.conv1 = CausalConv3d(*first, (3, 3, 3))
        self.name = name
        setattr(self, name, nn.ModuleList(levels))
        self.middle = nn.ModuleList([ResidualBlock(dim, dim), FrameAttention(dim), ResidualBlock(dim, dim)])
        self.head = nn.ModuleDict({"0": Gamma(head[0], 1, 1, 1), "2": CausalConv3d(*head, (3, 3, 3))})
        self.run_residual: Any = run_residual

    def forward(self, x: Tensor) -> Tensor:
        levels, middle = list(getattr(self, self.name)), list(self.middle)
        x = self.conv1(x)
        for layer in levels + middle if self.name == "downsamples" else middle + levels:
            x = self.run_residual(layer, x) if isinstance(layer, ResidualBlock) else layer(x)
        return self.head["2"](F.silu(norm(x, self.head["0"].gamma)))


class Vae(nn.Module):
    """Pixels [B, 3, 1 + 4k, H, W] in [-1, 1] to normalised latents [B, z, 1 + k, H / 8, W / 8] and back."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        last, blocks, base = len(s.vae_mult) - 1, s.vae_blocks, s.vae_dim
        widths = [base * m for m in (1, *s.vae_mult)]
        down: list[nn.Module] = []
        for level, (i, o) in enumerate(itertools.pairwise(widths)):
            down += [ResidualBlock(i if n == 0 else o, o) for n in range(blocks)]
            down += [Downsample(o, time=s.vae_time[level])] if level != last else []
        wide = [base * m for m in (s.vae_mult[-1], *reversed(s.vae_mult))]
        up: list[nn.Module] = []
        for level, (i, o) in enumerate(itertools.pairwise(wide)):
            i = i // 2 if level else i
            up += [ResidualBlock(i if n == 0 else o, o) for n in range(blocks + 1)]
            up += [Upsample(o, o // 2, time=s.vae_time[last - 1 - level])] if level != last else []
        self.encoder = Half((3, widths[0]), "downsamples", down, widths[-1], (widths[-1], 2 * s.z))
        self.conv1 = CausalConv3d(2 * s.z, 2 * s.z, (1, 1, 1))
        self.conv2 = CausalConv3d(s.z, s.z, (1, 1, 1))
        self.decoder = Half((s.z, wide[0]), "upsamples", up, wide[0], (wide[-1], 3))
        self.initialise()
        # Latent statistics; they live in the model's config, not in its weights file.
        self.register_buffer("mean", torch.zeros(1, s.z, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.ones(1, s.z, 1, 1, 1), persistent=False)

    def initialise(self) -> None:
        """Start as a linear map that keeps the signal's size.

        torch's own initialisation shrinks it to 0.58 in every convolution, and random residual branches drown what is left:
        the colours of small shapes then take thousands of steps to come through.
        """
        with torch.no_grad():
            for name, m in self.named_modules():
                if name.endswith("residual.6"):
                    nn.init.zeros_(m.weight)
                elif isinstance(m, nn.Conv2d | nn.Conv3d) and ".residual." not in name and not name.endswith("proj"):
                    nn.init.normal_(m.weight, std=m.weight[0].numel() ** -0.5)
            # Little noise at first: with the unit noise of a fresh posterior nothing gets through, and the latents collapse.
            z = self.conv2.in_channels
            self.conv1.weight[z:] *= 0.1
            nn.init.constant_(self.conv1.bias[z:], -5.0)

    def moments(self, video: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.conv1(self.encoder(video)).float().chunk(2, 1)
        return mean, logvar.clamp(-30.0, 20.0)

    def raw_decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.conv2(z)).float()

    def encode(self, video: Tensor) -> Tensor:
        return (self.moments(video)[0] - self.mean) / self.std

    def decode(self, latents: Tensor) -> Tensor:
        return self.raw_decode(latents * self.std + self.mean)

    def set_statistics(self, mean: list[float], std: list[float]) -> None:
        self.mean.copy_(self.mean.new_tensor(mean).view_as(self.mean))
        self.std.copy_(self.std.new_tensor(std).view_as(self.std))

    def channels_last(self) -> Vae:
        """Store convolution weights with channels innermost: convolutions then work in that layout throughout."""
        for p in self.parameters():
            if p.ndim >= 4 and p[0, 0].numel() > 1:
                p.data = p.data.contiguous(memory_format=torch.channels_last if p.ndim == 4 else torch.channels_last_3d)
        return self

    def compiled(self, on: bool) -> Vae:
        """Use compiled residual blocks from now on, or plain ones."""
        for half in (self.encoder, self.decoder):
            half.run_residual = _compiled() if on else run_residual
        return self


_COMPILED: list[Any] = []


def _compiled() -> Any:
    if not _COMPILED:
        _COMPILED.append(Compiled(run_residual))
    return _COMPILED[0]
