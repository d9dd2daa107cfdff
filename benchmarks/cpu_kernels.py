"""CPU kernels next to what torch offers by itself; the table of docs/adr/0006-cpu-kernels.md.

    python -m benchmarks.cpu_kernels [--threads 2] [--repeat 25] [--out benchmarks/results/cpu_kernels.json]

Contenders of a row take turns, so that a busy machine slows all of them alike. With one thread the clock is the thread's own
processor time, which other processes do not enter; with more it is wall time, and the machine must be idle.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.machine import commit, describe_machine
from turbort.ops import cpu, cpu_vae, sla_attention, vae_norm_silu, vae_upsample
from turbort.ops import linear as reference_linear
from turbort.ops.attention import dense
from turbort.quant import quantize

LINEARS = ((576, 256, 256), (576, 256, 1024), (576, 1024, 256), (1560, 1536, 1536), (1560, 1536, 8960), (1560, 8960, 1536))
VIDEOS = ((64, 16), (64, 32), (32, 64), (16, 128))
Calls = Mapping[str, Callable[[], object]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=25)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    clock = time.thread_time if args.threads == 1 else time.perf_counter
    rows = {}
    for name, calls in {**linears(), **videos(), **attentions()}.items():
        rows[name] = race(calls, args.repeat, clock)
        print(name, "  ".join(f"{key} {value:.2f}" for key, value in rows[name].items()), flush=True)
    if args.out:
        report = {"unit": "ms, median", "repeat": args.repeat, "threads": args.threads, "clock": clock.__name__}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(
            json.dumps({**report, "commit": commit(), "machine": describe_machine(), "rows": rows}, indent=2) + "\n"
        )


def race(calls: Calls, repeat: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median milliseconds of each contender."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeat + 2):
        for name, call in calls.items():
            started = clock()
            call()
            if turn >= 2:
                times[name].append((clock() - started) * 1e3)
    return {name: round(statistics.median(values), 3) for name, values in times.items()}


def linears() -> dict[str, Calls]:
    """y = x W^T + b; `quantised` starts from int8-token activations, `from fp32` quantises them too."""
    return {f"linear {m}x{k}x{n}": _linear(m, k, n) for m, k, n in LINEARS}


def _linear(m: int, k: int, n: int) -> Calls:
    x, w, b = torch.randn(1, m, k), torch.randn(n, k) * k**-0.5, torch.randn(n)
    xb, wb, bb = x.bfloat16(), w.bfloat16(), b.bfloat16()
    packed, packed_b, weight, tokens = (
        cpu.pack_float(w),
        cpu.pack_float(wb),
        quantize(w, "int8-channel"),
        quantize(x, "int8-token"),
    )
    packed_8 = cpu.pack_int8(weight)
    return {
        "fp32 F.linear": lambda: F.linear(x, w, b),
        "fp32 packed": lambda: cpu.linear_float(x, packed, b),
        "bf16 F.linear": lambda: F.linear(xb, wb, bb),
        "bf16 packed": lambda: cpu.linear_float(xb, packed_b, bb),
        "int8 _int_mm": lambda: reference_linear(tokens, weight, b),
        "int8 packed": lambda: cpu.linear_int8(tokens, packed_8, b),
        "int8 packed from fp32": lambda: cpu.linear_int8(x, packed_8, b),
    }


def videos() -> dict[str, Calls]:
    """The VAE's ops on 4 frames."""
    return {f"vae {channels}x4x{side}x{side}": _video(channels, side) for channels, side in VIDEOS}


def _video(channels: int, side: int) -> Calls:
    x = torch.randn(1, channels, 4, side, side)
    inner = x.contiguous(memory_format=torch.channels_last_3d)
    w, b, gamma = torch.randn(channels, channels, 3, 3, 3) * 0.05, torch.randn(channels), torch.randn(channels)
    w2, b2 = torch.randn(channels // 2, channels, 3, 3) * 0.1, torch.randn(channels // 2)
    padded, full = F.pad(x, (0, 0, 0, 0, 2, 0)), {"padding": (1, 1, 1)}
    return {
        "conv F.conv3d": lambda: F.conv3d(padded, w, b, padding=(0, 1, 1)),
        "conv oneDNN": lambda: cpu_vae.causal_conv3d(inner, w, b, **full),
        "norm reference": lambda: vae_norm_silu(x, gamma),
        "norm channels innermost": lambda: cpu_vae.vae_norm_silu(inner, gamma),
        "upsample reference": lambda: vae_upsample(x, w2, b2),
        "upsample phases": lambda: cpu_vae.vae_upsample(inner, w2, b2),
    }


def attentions() -> dict[str, Calls]:
    """Self-attention of the embedded model: 576 tokens, 2 heads of 128."""
    rows = {}
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = (torch.randn(1, 576, 2, 128, dtype=dtype) for _ in range(3))
        weight, bias = torch.randn(128, 128, dtype=dtype), torch.randn(128, dtype=dtype)
        rows[f"attention 576x2x128 {str(dtype).removeprefix('torch.')}"] = _attention(q, k, v, weight, bias)
    return rows


def _attention(*tensors: torch.Tensor) -> Calls:
    return {
        "dense": lambda: dense(*tensors[:3]),
        "sla 0.1": lambda: sla_attention(*tensors, topk=0.1),
        "sla 0.1 int8": lambda: sla_attention(*tensors, topk=0.1, precision="int8"),
    }


if __name__ == "__main__":
    main()
