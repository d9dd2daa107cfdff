"""Image conditions of a group of jobs: what an image-to-video model is given besides noise and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from turbort.io.image import read_image
from turbort.job import Job
from turbort.models.clip import ClipConfig
from turbort.models.image import first_frame_times, hold_first_frame, image_condition, load_clip
from turbort.models.spec import ModelSpec
from turbort.models.wan_vae import WanVae


@dataclass(frozen=True)
class Conditions:
    """Of a batch: `channels` [B, 4 + z, T, h, w] for I2V, `first` [B, z, 1, h, w] for TI2V, CLIP `tokens` [B, N, D]."""

    channels: Tensor | None = None
    first: Tensor | None = None
    tokens: Tensor | None = None

    def repeated(self, rows: int) -> Conditions:
        """The same for a batch that holds every sample `rows / B` times, as guidance does."""

        def more(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.repeat(rows // len(x), *[1] * (x.ndim - 1))

        return Conditions(more(self.channels), more(self.first), more(self.tokens))


def picture(path: Path, width: int, height: int) -> Tensor:
    """[1, 3, height, width] in [-1, 1]: scaled to cover the size (bicubic, antialiased), the middle cut out."""
    pixels = torch.from_numpy(read_image(path)).permute(2, 0, 1)[None].float() / 127.5 - 1.0
    tall, wide = pixels.shape[2:]
    scale = max(width / wide, height / tall)
    size = (max(height, round(tall * scale)), max(width, round(wide * scale)))
    scaled = F.interpolate(pixels, size=size, mode="bicubic", align_corners=False, antialias=True)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return scaled[:, :, top : top + height, left : left + width].clamp(-1.0, 1.0)


def conditions_of(
    jobs: Sequence[Job],
    spec: ModelSpec,
    vae: WanVae,
    files: Mapping[str, Path],
    *,
    device: torch.device,
    dtype: torch.dtype,
    compute: torch.dtype,
) -> Conditions:
    """Everything the images of `jobs` (of one shape, resolved) mean to the model; VAE in `dtype`, results in `compute`.

    CLIP is loaded for the call and freed afterwards.
    """
    if all(job.image is None for job in jobs):
        return Conditions()
    pictures = {job.image: picture(job.image, job.width or 0, job.height or 0).to(device) for job in jobs if job.image}
    if spec.task != "i2v":
        first = {path: vae.encode_stream(image.to(dtype).unsqueeze(2)) for path, image in pictures.items()}
        latents = {path: next(iter(stream)).to(torch.float32) for path, stream in first.items()}
        return Conditions(first=torch.cat([latents[job.image] for job in jobs if job.image]))
    channels = {path: image_condition(vae, image.to(dtype), jobs[0].frames or 1).to(compute) for path, image in pictures.items()}
    tokens = None
    if spec.dit.image_embed:
        clip = load_clip(files["image"], device=device, dtype=compute, config=ClipConfig(**dict(spec.clip)))
        seen = {path: clip(image) for path, image in pictures.items()}
        tokens = torch.cat([seen[job.image] for job in jobs if job.image]).to(compute)
    return Conditions(torch.cat([channels[job.image] for job in jobs if job.image]), tokens=tokens)


def holding_first_frame(x: Tensor, velocity: Tensor, first: Tensor, t: float) -> Tensor:
    """The velocity with that of the first frame replaced, so that the sampler's clean estimate shows the image there."""
    held = (x[:, :, :1] - first.to(x.dtype)) / t
    return torch.cat([held, velocity[:, :, 1:].to(held.dtype)], dim=2)


__all__ = [
    "Conditions",
    "conditions_of",
    "first_frame_times",
    "hold_first_frame",
    "holding_first_frame",
    "picture",
]
