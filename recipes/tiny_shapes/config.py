"""Sizes of the tiny model and of its clips. Every stage reads them from here."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Sizes:
    """All sizes; `SMALL` is for a quick run on a CPU.

    frames, edge: of a clip; dim, heads, ffn, layers: of the transformer; text_*: of the text encoder;
    vae_*: of the autoencoder.
    """

    frames: int = 33
    edge: int = 128
    fps: int = 16
    dim: int = 256
    heads: int = 2
    ffn: int = 1024
    layers: int = 8
    freq_dim: int = 256
    z: int = 16
    text_dim: int = 128
    text_heads: int = 4
    text_ffn: int = 256
    text_layers: int = 2
    text_len: int = 32
    vae_dim: int = 16
    vae_mult: tuple[int, ...] = (1, 2, 4, 4)
    vae_blocks: int = 1
    vae_time: tuple[bool, ...] = (False, True, True)

    @property
    def latent(self) -> tuple[int, int, int, int]:
        """(channels, T, H, W) of a clip's latents."""
        return self.z, 1 + (self.frames - 1) // 4, self.edge // 8, self.edge // 8

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along (T, H, W)."""
        _, t, h, w = self.latent
        return t, h // 2, w // 2


FULL = Sizes()
SMALL = replace(FULL, frames=5, edge=32, dim=128, heads=1, ffn=256, layers=1, text_layers=1, vae_dim=8)

SHIFT = 3.0  # of the teacher's schedule: t = shift u / (1 + (shift - 1) u)
TEACHER_STEPS = 50
RCM_TIMES = (1.5, 1.4, 1.0)  # angles of steps 2..4
SIGMA_MAX = 80.0  # tan of the angle of step 1
SLA_TOPK = 0.1
SLA_BLOCK = (64, 128)  # tokens per query block and per key block
