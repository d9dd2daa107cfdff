"""From latents to a file: decoding in chunks, each written as soon as it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy
from torch import Tensor

from turbort.io import frames_to_uint8, open_writer
from turbort.job import Job
from turbort.models.wan_vae import WanVae
from turbort.tiles import decode_tiles


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

    Returns the file's path, or the frames (uint8 [T, H, W, 3]) of a job that names none. An interruption leaves no file.
    `told(done, total)` is called after each chunk.
    """
    kept = []
    with ExitStack() as stack:
        writer = None
        if job.out is not None:
            size = (job.width or 0, job.height or 0)
            writer = stack.enter_context(open_writer(job.out, *size, job.fps or 1, frames_hint=job.frames))
        for done, total, pixels in _whole(vae, latents, chunk) if tile is None else decode_tiles(vae, latents, tile, chunk):
            told(done, total)
            if pixels is None:
                continue
            frames = frames_to_uint8(pixels)
            if writer is None:
                kept.append(frames)
            else:
                writer.write(frames)
    return (writer.path, None) if writer is not None else (None, numpy.concatenate(kept))


def _whole(vae: WanVae, latents: Tensor, chunk: int) -> Iterator[tuple[int, int, Tensor | None]]:
    total = -(-latents.shape[2] // chunk)
    for done, pixels in enumerate(vae.decode_stream(latents, chunk=chunk), start=1):
        yield done, total, pixels[0]
