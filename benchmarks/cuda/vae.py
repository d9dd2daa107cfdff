"""VAE decode of W: the planned decoder in chunks, with peak memory, and the convolutions that bound it."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from benchmarks.cuda import convolution
from benchmarks.cuda.results import Results
from benchmarks.cuda.timing import DEVICE
from benchmarks.cuda.workload import FRAMES, LATENT, filled, planned

FLOP = 275e12
"""Of the whole decode; see NUMBERS."""


def decoder(args: argparse.Namespace) -> Any:
    """The bound VAE with random weights, on the GPU."""
    from turbort.models.vae import build_vae

    spec, _, registry, plan = planned(args.model, args.profile)
    with torch.device("meta"):
        vae = build_vae(spec.vae).requires_grad_(False).eval()
    return filled(vae, "vae", plan, registry, torch.bfloat16)


@torch.inference_mode()
def run(results: Results, args: argparse.Namespace) -> None:
    model = decoder(args)
    latents = torch.randn(1, 16, *LATENT, device=DEVICE, dtype=torch.bfloat16)
    for chunk in (2, 4) if args.quick else (1, 2, 4, 8):
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

        def decode(chunk: int = chunk) -> None:
            for _ in model.decode_stream(latents, chunk=chunk):
                pass

        results.time(f"decode {FRAMES} frames, {chunk} latent frames a chunk", decode, flop=FLOP, seconds=1.0)
        if DEVICE == "cuda":
            results.note(f"peak memory, chunk {chunk}", gib=torch.cuda.max_memory_allocated() / 2**30)
    convolution.run(results)
