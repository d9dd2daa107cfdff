"""Linears at the model's shapes: every precision of ours against cuBLAS."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F

from benchmarks.cuda.results import Results
from benchmarks.cuda.timing import DEVICE
from benchmarks.cuda.workload import LINEARS, TOKENS


def run(results: Results, args: argparse.Namespace) -> None:
    from turbort_cuda.kernels import linear8, linear_block128, linear_int4, quant

    from turbort.quant.schemes import quantize

    shapes = {name: size for name, size in LINEARS.items() if args.quick is False or "14B" not in name}
    for name, (n, k) in shapes.items():
        flop = 2.0 * TOKENS * n * k
        x = torch.randn(TOKENS, k, device=DEVICE, dtype=torch.bfloat16)
        weight = torch.randn(n, k, device=DEVICE) * k**-0.5
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
        residual, gate = torch.randn(1, TOKENS, n, device=DEVICE, dtype=torch.bfloat16), torch.randn(1, 1, n, device=DEVICE)
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
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
