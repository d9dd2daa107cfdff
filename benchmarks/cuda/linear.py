"""Linears at the model's shapes: every precision of ours against cuBLAS; `--tune` tries configurations and may save the best."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.cuda.results import Results
from benchmarks.cuda.workload import LINEARS, TOKENS


def run(results: Results, args: argparse.Namespace) -> None:
    from turbort_cuda.kernels import linear8, linear_block128, linear_int4, quant

    from turbort.quant.schemes import quantize

    shapes = {name: size for name, size in LINEARS.items() if args.quick is False or "14B" not in name}
    for name, (n, k) in shapes.items():
        flop = 2.0 * TOKENS * n * k
        x = torch.randn(TOKENS, k, device="cuda", dtype=torch.bfloat16)
        weight = torch.randn(n, k, device="cuda") * k**-0.5
        half = weight.to(torch.bfloat16)
        results.time(f"{name} torch bf16", lambda x=x, w=half: F.linear(x, w), flop=flop)
        qx, fx = quant.quantize(x, emit="int8-token"), quant.quantize(x, emit="fp8-token")
        qw, fw = linear8.pack(quantize(weight, "int8-channel")), linear8.pack(quantize(weight, "fp8-channel"))
        results.time(f"{name} torch _int_mm (no scales)", lambda a=qx, w=qw: torch._int_mm(a.values, w.values.t()), flop=flop)
        results.time(
            f"{name} torch _scaled_mm fp8",
            lambda a=fx, w=fw: torch._scaled_mm(
                a.values, w.values.t(), scale_a=a.scales.view(-1, 1), scale_b=w.scales.view(1, -1), out_dtype=torch.bfloat16
            ),
            flop=flop,
        )
        results.time(f"{name} ours w8a8", lambda a=qx, w=qw: linear8.linear(a, w), flop=flop)
        results.time(f"{name} ours fp8", lambda a=fx, w=fw: linear8.linear(a, w), flop=flop)
        residual, gate = torch.randn(1, TOKENS, n, device="cuda", dtype=torch.bfloat16), torch.randn(1, 1, n, device="cuda")
        one = type(qx)(qx.scheme, qx.values[None], qx.scales[None], qx.dtype)
        results.time(
            f"{name} ours w8a8 gate+residual",
            lambda a=one, w=qw, r=residual, g=gate: linear8.linear(a, w, residual=r, gate=g),
            flop=flop,
        )
        if not args.quick:
            bx, bw = quant.quantize(x, emit="int8-block128"), linear_block128.pack(quantize(weight, "int8-block128"))
            results.time(f"{name} ours w8a8-block128", lambda a=bx, w=bw: linear_block128.linear(a, w), flop=flop)
            four = linear_int4.pack(quantize(weight, "int4-group128"))
            results.time(f"{name} ours w4a8", lambda a=qx, w=four: linear_int4.linear_w4a8(a, w), flop=flop)
            results.time(f"{name} ours w4a16", lambda a=x, w=four: linear_int4.linear_w4a16(a, w), flop=flop)
        if args.tune:
            _tune(results, name, n, k, qx, qw, flop, save=args.save)
        torch.cuda.empty_cache()


def _tune(results: Results, name: str, n: int, k: int, x: Any, weight: Any, flop: float, *, save: bool) -> None:
    from turbort_cuda.kernels import linear8
    from turbort_cuda.tuning import save as store

    best: tuple[float, dict[str, Any]] | None = None
    for config in variants():
        label = " ".join(f"{key}={value}" for key, value in config.items() if key != "GROUP" or value != 8)
        found = results.time(
            f"{name} w8a8 {label}", lambda c=config: linear8.linear(x, weight, config=c), flop=flop, seconds=0.08, config=config
        )
        if found and (best is None or found.ms < best[0]):
            best = found.ms, config
    if best:
        results.note(f"{name} best", ms=best[0], tflop_s=flop / best[0] / 1e9, config=best[1])
        if save:
            major, minor = torch.cuda.get_device_capability()
            store(f"sm_{major}{minor}", "linear8", f"{n}x{k}", best[1])


def variants() -> Iterator[dict[str, Any]]:
    """Configurations worth a try on a card with TMA."""
    base = {"GROUP": 8, "tma": True}
    for m, n, k, stages, warps, halves in (
        (128, 256, 128, 4, 8, True),
        (128, 256, 128, 3, 8, True),
        (128, 256, 128, 3, 8, False),
        (128, 256, 64, 4, 8, True),
        (128, 128, 128, 4, 4, False),
        (128, 128, 128, 4, 8, False),
        (256, 128, 128, 4, 8, True),
    ):
        yield {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "stages": stages, "warps": warps, "halves": halves, **base}
    first = {"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 128, "stages": 4, "warps": 8, "halves": True, **base}
    yield {**first, "GROUP": 16}
    yield {**first, "flatten": True}
    yield {**first, "stages": 3, "specialize": True}
    yield {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 128, "stages": 2, "warps": 4, "per_sm": 2, **base}
    yield {**first, "tma": False, "stages": 3}
