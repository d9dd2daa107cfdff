"""From latents to a file: decoding in chunks, each encoded while the next one is decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
from torch import Tensor

from turbort.io import Arriving, open_writer, write_behind
from turbort.job import Job
from turbort.models.wan_vae import WanVae
from turbort.tiles import decode_tiles

Parts = Iterator[tuple[int, int, Tensor | None]]
"""Number of a chunk, of how many, and its pixels [3, T, H, W]; None where they come later."""


def decode(
    vae: WanVae,
    latents: Tensor,
    job: Job,
    chunk: int,
    told: Callable[[int, int], None],
    *,
    tile: tuple[int, int] | None = None,
) -> tuple[Path | None, Any]:
    """Decode one job's latents [1, z, T, h, w], `chunk` latent frames at a time, into its file.

    With `tile` (height and width in pixels) the whole clip is decoded part by part and written at the end.

    Returns the file's path, or the frames (uint8 [T, H, W, 3]) of a job that names none. An interruption leaves no file,
    and an error of the encoder or the disk is raised here. `told(done, total)` is called after each chunk; a device that
    works on its own may be up to three chunks behind.
    """
    parts = _whole(vae, latents, chunk) if tile is None else decode_tiles(vae, latents, tile, chunk)
    chunks = _pixels(parts, told)
    if job.out is None:
        kept = [Arriving(pixels) for pixels in chunks]
        return None, numpy.concatenate([chunk.frames() for chunk in kept])
    writer = open_writer(job.out, job.width or 0, job.height or 0, job.fps or 1, frames_hint=job.frames)
    write_behind(writer, chunks)
    return writer.path, None


def _pixels(parts: Parts, told: Callable[[int, int], None]) -> Iterator[Tensor]:
    for done, total, pixels in parts:
        told(done, total)
        if pixels is not None:
            yield pixels


def _whole(vae: WanVae, latents: Tensor, chunk: int) -> Parts:
    total = -(-latents.shape[2] // chunk)
    for done, pixels in enumerate(vae.decode_stream(latents, chunk=chunk), start=1):
        yield done, total, pixels[0]
