"""From latents to a file: decoding in chunks, each written as soon as it is there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy
from torch import Tensor

from turbort.io import frames_to_uint8, open_writer
from turbort.job import Job
from turbort.models.wan_vae import WanVae


def decode(vae: WanVae, latents: Tensor, job: Job, chunk: int, told: Callable[[int, int], None]) -> tuple[Path | None, Any]:
    """Decode one job's latents [1, z, T, h, w], `chunk` latent frames at a time, into its file.

    Returns the file's path, or the frames (uint8 [T, H, W, 3]) of a job that names none. An interruption leaves no file.
    `told(done, total)` is called after each chunk.
    """
    total = -(-latents.shape[2] // chunk)
    kept = []
    with ExitStack() as stack:
        writer = None
        if job.out is not None:
            size = (job.width or 0, job.height or 0)
            writer = stack.enter_context(open_writer(job.out, *size, job.fps or 1, frames_hint=job.frames))
        for done, pixels in enumerate(vae.decode_stream(latents, chunk=chunk), start=1):
            frames = frames_to_uint8(pixels[0])
            told(done, total)
            if writer is None:
                kept.append(frames)
            else:
                writer.write(frames)
    return (writer.path, None) if writer is not None else (None, numpy.concatenate(kept))
