"""Prompt to file with random full-size weights: text encoder, four steps, streaming decode, mp4 (raw frames without PyAV)."""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.cuda.results import Results
from benchmarks.cuda.step import prepared
from benchmarks.cuda.timing import DEVICE, synchronize
from benchmarks.cuda.vae import decoder
from benchmarks.cuda.workload import FRAMES, PIXELS, TOY

STEPS = 1 if TOY else 4


@torch.inference_mode()
def run(results: Results, args: argparse.Namespace) -> None:
    from turbort.models.spec import get_model

    model, step, (x, t, _), _ = prepared(args)
    vae = decoder(args)
    spec = get_model(args.model)
    encoder = _text_encoder(spec)
    ids = torch.randint(0, spec.text.vocab, (1, spec.dit.text_len), device=DEVICE)
    mask = torch.ones_like(ids)
    with tempfile.TemporaryDirectory() as folder:
        for attempt in ("warm-up", "first", "second", "third")[: 1 if TOY else None]:
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
            begin = clock()
            path = _write(vae, latents.clamp(-3, 3), Path(folder), args.chunk)
            parts["decode and write"] = clock() - begin
            results.note(f"e2e {attempt}", total=clock() - started, file=path.suffix, **parts)


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


def _write(vae: Any, latents: torch.Tensor, folder: Path, chunk: int) -> Path:
    from turbort.io import frames_to_uint8, open_writer

    path = folder / ("video.mp4" if importlib.util.find_spec("av") else "video.npy")
    with open_writer(path, PIXELS[1], PIXELS[0], 16, frames_hint=FRAMES) as writer:
        for pixels in vae.decode_stream(latents, chunk=chunk):
            writer.write(frames_to_uint8(pixels[0]))
    return path
