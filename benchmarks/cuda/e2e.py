"""Prompt to file with random full-size weights: text encoder, four steps, and the product's own decoding and writing to mp4.

Random weights decode to noise, the worst case of any encoder and nothing that people see. So the headline rows encode a moving
scene of the same size: every chunk is decoded, rounded and copied to the host as always, and the scene's frames take its
place just before the encoder. The other rows encode the noise itself. Without PyAV both write raw frames.

Parts of a row: `decode` ends when the device has decoded the last chunk, `encoder` is what was left to encode and write after it.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.clip import moving_scene
from benchmarks.cuda.results import Results
from benchmarks.cuda.step import prepared
from benchmarks.cuda.timing import DEVICE, synchronize
from benchmarks.cuda.vae import decoder
from benchmarks.cuda.workload import FRAMES, PIXELS, TOY

if TYPE_CHECKING:
    from benchmarks.clip import Frames

STEPS = 1 if TOY else 4
ATTEMPTS = ("warm-up", "first", "second", "third")[: 1 if TOY else None]


@torch.inference_mode()
def run(results: Results, args: argparse.Namespace) -> None:
    from turbort.models.spec import get_model

    scene = moving_scene(FRAMES, *PIXELS)
    model, step, (x, t, _), _ = prepared(args)
    vae = decoder(args)
    spec = get_model(args.model)
    encoder = _text_encoder(spec)
    ids = torch.randint(0, spec.text.vocab, (1, spec.dit.text_len), device=DEVICE)
    mask = torch.ones_like(ids)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("video.mp4" if importlib.util.find_spec("av") else "video.npy")
        for content, clip in (("moving scene", scene), ("noise", None)):
            for attempt in ATTEMPTS:
                parts = {}
                started = clock()
                text = encoder(ids, mask)
                context = model.encode_text(text.to(torch.bfloat16))
                parts["text"] = clock() - started
                latents = x.clone()
                begin = clock()
                for index in range(STEPS):
                    velocity = step(latents, t, context)
                    latents = latents - velocity * (1.0 / STEPS) if index else latents
                parts["sample"] = clock() - begin
                with encoding(clip):
                    parts |= _decoded(vae, latents.clamp(-3, 3), path, args.chunk)
                total = clock() - started
                mib = path.stat().st_size / 2**20
                results.note(f"e2e {content}, {attempt}", total=total, **parts, mib=mib, file=path.suffix)


def clock() -> float:
    """Seconds, after the device has finished."""
    synchronize()
    return time.perf_counter()


def _text_encoder(spec: Any) -> Any:
    from turbort.models.umt5 import Umt5

    with torch.device("meta"):
        model = Umt5(spec.text).requires_grad_(False).eval()
    model = model.to_empty(device=DEVICE).to(torch.bfloat16)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.02)
    return model


@contextmanager
def encoding(clip: Frames | None) -> Iterator[None]:
    """Inside the block the product's writers get the frames of `clip` instead of those they are given; None: no change."""
    from turbort import output

    real = output.open_writer

    def opened(*args: Any, **options: Any) -> Any:
        writer = real(*args, **options)
        append = writer._append
        if clip is not None:
            writer._append = lambda frames: append(clip[writer.frames : writer.frames + len(frames)])  # type: ignore[method-assign]
        return writer

    output.open_writer = opened
    try:
        yield
    finally:
        output.open_writer = real


def _decoded(vae: Any, latents: torch.Tensor, path: Path, chunk: int) -> dict[str, float]:
    """Seconds until the device has decoded the last chunk, and from there until the file is whole."""
    from turbort.job import Job
    from turbort.output import decode

    begin = clock()
    decoded = begin

    def told(done: int, total: int) -> None:
        nonlocal decoded
        if done == total:
            decoded = clock()

    decode(vae, latents, Job("", width=PIXELS[1], height=PIXELS[0], frames=FRAMES, fps=16, out=path), chunk, told)
    return {"decode": decoded - begin, "encoder": clock() - decoded}
