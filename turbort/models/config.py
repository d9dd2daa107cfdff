"""What a model is: sizes, files and sampling defaults, as frozen dataclasses. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from turbort.errors import unknown

Task = Literal["t2v", "i2v"]
SamplerName = Literal["rcm", "euler", "unipc"]


@dataclass(frozen=True, slots=True)
class Sla:
    """Sparse-linear attention: the ratio of key blocks kept per query block, and (query, key) block sizes in tokens."""

    topk: float = 0.1
    block: tuple[int, int] = (64, 128)


@dataclass(frozen=True, slots=True)
class DitConfig:
    """Sizes of a Wan diffusion transformer.

    Attributes:
        dim, ffn_dim, heads, layers: width D, feed-forward width F, attention heads (head_dim = D / heads), blocks.
        in_channels: latent channels plus those of the image condition (36 = 16 + 4 mask + 16 image for I2V).
        text_dim, text_len: width of the text encoder and the number of tokens its output is padded to.
        freq_dim: width of the sinusoidal time embedding.
        patch: (frames, rows, columns) of latent per token.
        image_embed: whether cross-attention has a second branch for CLIP image tokens of width `image_dim`.
        token_time: whether the time may differ per token (first-frame conditioning of TI2V-5B).
        sla: attention the checkpoint was trained for, or None for dense attention.
    """

    dim: int
    ffn_dim: int
    heads: int
    layers: int
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    text_len: int = 512
    freq_dim: int = 256
    patch: tuple[int, int, int] = (1, 2, 2)
    image_embed: bool = False
    image_dim: int = 1280
    token_time: bool = False
    eps: float = 1e-6
    sla: Sla | None = None

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def parameters(self) -> int:
        """Values in all weights of one transformer."""
        d, f, patch = self.dim, self.ffn_dim, self.patch[0] * self.patch[1] * self.patch[2]
        block = 8 * d * d + 2 * d * f + f + 21 * d
        block += self.head_dim * (self.head_dim + 1) if self.sla else 0
        block += 2 * d * d + 3 * d if self.image_embed else 0
        image = self.image_dim * (self.image_dim + d + 4) - self.image_dim + 3 * d if self.image_embed else 0
        inputs = self.in_channels * patch * d + self.text_dim * d + self.freq_dim * d + 2 * d * d + 5 * d
        outputs = 6 * d * d + 6 * d + (d + 1) * self.out_channels * patch + 2 * d
        return self.layers * block + inputs + outputs + image


@dataclass(frozen=True, slots=True)
class VaeConfig:
    """Sizes of a Wan video VAE.

    Attributes:
        base_dim, decoder_base_dim: channels at full resolution in the encoder and the decoder (None: the same).
        dim_mult: channel multiple per level; res_blocks: residual blocks per level in the encoder (one more in the decoder).
        temporal_downsample: per level but the last, whether time is halved there.
        stride: (frames, rows, columns) of video per latent value.
        mean, std: per-channel statistics: the diffusion model sees (latent - mean) / std.
        residual: the Wan 2.2 variant with averaging and duplicating shortcuts.
        pixel_patch: edge of the pixel patches folded into channels before the first convolution (1: none).
    """

    base_dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    stride: tuple[int, int, int] = (4, 8, 8)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    decoder_base_dim: int | None = None
    residual: bool = False
    pixel_patch: int = 1


@dataclass(frozen=True, slots=True)
class TextConfig:
    """Sizes of a umT5 encoder."""

    dim: int = 4096
    ffn_dim: int = 10240
    heads: int = 64
    head_dim: int = 64
    layers: int = 24
    vocab: int = 256384
    text_len: int = 512


@dataclass(frozen=True, slots=True)
class Preset:
    """How a sampler is run: steps, guidance scale (1 means no second pass), schedule shift and largest sigma (rCM only).

    `guidance_low` is the guidance of the low-noise expert where it differs.
    """

    steps: int
    guidance: float = 1.0
    shift: float = 1.0
    sigma_max: float = 80.0
    guidance_low: float | None = None


@dataclass(frozen=True, slots=True)
class Defaults:
    """What is made when the user asks for nothing else. Sizes in pixels, `frames` is 1 + 4k, `fps` in frames per second."""

    width: int
    height: int
    frames: int
    fps: int


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Everything turbort knows about a model before any of its weights are read.

    Attributes:
        sampler: the sampler used unless the user picks another; `presets` has the settings of each that fits.
        experts: names of the transformers in order of falling noise; `boundary` is the time in [0, 1] where they switch.
        files: role (`dit`, `vae`, `text`, `tokenizer`, `image`, or an expert's name) to file patterns inside the model folder.
        repos: public repositories that hold the files, by kind (`base`, `turbo`).
        negative_prompt: the text of the unconditional pass of guidance.
        prompt_grammar: a JSON file that lists the words a small model understands, or None.
        root: the folder the files are in, when the model comes with turbort.
        clip: sizes of the image encoder where they differ from ViT-H/14's.
    """

    name: str
    title: str
    dit: DitConfig
    vae: VaeConfig
    text: TextConfig
    task: Task
    defaults: Defaults
    presets: Mapping[str, Preset]
    sampler: SamplerName
    experts: tuple[str, ...] = ()
    boundary: float | None = None
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    repos: Mapping[str, str] = field(default_factory=dict)
    licence: str = "Apache-2.0"
    negative_prompt: str = ""
    prompt_grammar: Path | None = None
    root: Path | None = None
    clip: Mapping[str, int] = field(default_factory=dict)

    @property
    def image_tokens(self) -> int:
        """Tokens of the image encoder: one per patch and one for the whole picture."""
        return 1 + (self.clip.get("image", 224) // self.clip.get("patch", 14)) ** 2

    @property
    def preset(self) -> Preset:
        """The settings of the default sampler."""
        return self.presets[self.sampler]

    def with_sampler(self, sampler: SamplerName) -> ModelSpec:
        """The same model run with another of its `presets`: InputError when it has none for `sampler`."""
        if sampler not in self.presets:
            raise unknown(f"sampler of {self.name}", sampler, self.presets)
        return replace(self, sampler=sampler)

    def base(self) -> ModelSpec:
        """The model before distillation: dense attention, UniPC with guidance. Itself when it has no such checkpoint."""
        if "unipc" not in self.presets:
            return self
        return replace(self, dit=replace(self.dit, sla=None), sampler="unipc")

    def latent_shape(self, width: int, height: int, frames: int) -> tuple[int, int, int, int]:
        """(channels, T, H, W) of the latents of a video; floors sizes that are not multiples of the stride."""
        t, h, w = self.vae.stride
        return self.vae.z_dim, 1 + (frames - 1) // t, height // h, width // w

    def tokens(self, width: int, height: int, frames: int) -> int:
        """Length of the token sequence that the transformer sees."""
        t, h, w = self.token_grid(width, height, frames)
        return t * h * w

    def token_grid(self, width: int, height: int, frames: int) -> tuple[int, int, int]:
        """(T, H, W) of the token sequence, in the order in which tokens follow each other: W first."""
        _, t, h, w = self.latent_shape(width, height, frames)
        pt, ph, pw = self.dit.patch
        return t // pt, h // ph, w // pw


def frozen(**presets: Preset) -> Mapping[str, Preset]:
    """Presets by sampler name, read-only."""
    return MappingProxyType(presets)
