"""The fused memory passes at W against the copy bandwidth of the card."""

from __future__ import annotations

import argparse

import torch

from benchmarks.cuda.results import Results
from benchmarks.cuda.timing import DEVICE
from benchmarks.cuda.workload import DIM, FFN, HEAD, HEADS, LATENT, PIXELS, TOKENS


def run(results: Results, args: argparse.Namespace) -> None:
    from turbort_cuda.kernels import norm, patch, quant, rope, vae

    x = torch.randn(1, TOKENS, DIM, device=DEVICE).to(torch.bfloat16)
    y, h = torch.randn_like(x), torch.randn(1, TOKENS, FFN, device=DEVICE).to(torch.bfloat16)
    gate, scale, shift = (torch.randn(1, 1, DIM, device=DEVICE) for _ in range(3))
    one = 2.0 * x.numel()
    results.time("norm_modulate -> bf16", lambda: norm.norm_modulate(x, scale, shift), bytes_=2 * one)
    results.time("norm_modulate -> int8", lambda: norm.norm_modulate(x, scale, shift, emit="int8-token"), bytes_=1.5 * one)
    results.time(
        "gated_residual_norm_modulate -> int8",
        lambda: norm.gated_residual_norm_modulate(x, y, gate, scale, shift, emit="int8-token"),
        bytes_=3.5 * one,
    )
    results.time("gated_residual", lambda: norm.gated_residual(x, y, gate), bytes_=3 * one)
    results.time("rms_norm", lambda: norm.rms_norm(x, scale[0, 0]), bytes_=2 * one)
    angles = torch.rand(TOKENS, HEAD // 2, device=DEVICE)
    results.time("qk_norm_rope", lambda: rope.qk_norm_rope(x, scale[0, 0], angles, angles, heads=HEADS), bytes_=2 * one)
    results.time("gelu_quant -> int8 (8960 wide)", lambda: quant.gelu_quant(h, emit="int8-token"), bytes_=3.0 * h.numel())
    results.time("quantize int8-token", lambda: quant.quantize(x, emit="int8-token"), bytes_=1.5 * one)
    results.time("quantize int8-block128", lambda: quant.quantize(x, emit="int8-block128"), bytes_=1.5 * one)
    results.time("torch layer_norm (for comparison)", lambda: torch.nn.functional.layer_norm(x, (DIM,)), bytes_=2 * one)
    latents = torch.randn(1, 16, *LATENT, device=DEVICE).to(torch.bfloat16)
    results.time("patchify", lambda: patch.patchify(latents), bytes_=4.0 * latents.numel())
    pixels = torch.randn(1, 96, 4, *PIXELS, device=DEVICE).to(torch.bfloat16).contiguous(memory_format=torch.channels_last_3d)
    gamma = torch.ones(96, 1, 1, 1, device=DEVICE)
    results.time("vae_norm_silu 96x4x480x832", lambda: vae.vae_norm_silu(pixels, gamma), bytes_=4.0 * pixels.numel())
