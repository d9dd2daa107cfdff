"""Where a step's time goes: every kernel of one eager step, by class; idle is what the graph removes."""

from __future__ import annotations

import argparse
from collections import defaultdict

import torch

from benchmarks.cuda.results import Results
from benchmarks.cuda.step import prepared
from benchmarks.cuda.timing import synchronize

CLASSES = {
    "gemm": ("linear8_kernel", "block128_kernel", "int4_kernel", "bsq_kernel", "gemm", "nvjet", "cutlass", "xmma"),
    "attention": ("attention_kernel", "flash", "cudnn", "sdpa", "fmha"),
    "attention preparation": ("sums_kernel", "prepare_kernel", "choose_kernel"),
    "quantisation": ("rows_kernel", "blocks_kernel"),
    "norms and rope": ("norm_kernel", "rope_kernel"),
    "copies": ("memcpy", "copy", "cat", "fill", "memset"),
}


@torch.inference_mode()
def run(results: Results, args: argparse.Namespace) -> None:
    from torch.profiler import ProfilerActivity, profile

    model, step, arguments, _ = prepared(args)
    for _ in range(2):
        model(*arguments)
    synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        model(*arguments)
        synchronize()
    names: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for event in seen.events():
        if "cuda" in str(event.device_type).lower():
            names[event.name] += event.device_time / 1e3 if hasattr(event, "device_time") else event.cuda_time / 1e3
            counts[event.name] += 1
    total = sum(names.values())
    classes: dict[str, float] = defaultdict(float)
    for name, ms in names.items():
        classes[kind_of(name)] += ms
    for kind, ms in sorted(classes.items(), key=lambda item: -item[1]):
        results.note(f"class {kind}", ms=ms, share=ms / total)
    for name, ms in sorted(names.items(), key=lambda item: -item[1])[:25]:
        results.note(f"kernel {name[:70]}", ms=ms, calls=counts[name])
    found = results.time("step, CUDA graph", lambda: step(*arguments), seconds=1.0)
    if found:
        results.note("idle in the graph", ms=found.ms - total, share=(found.ms - total) / found.ms)


def kind_of(name: str) -> str:
    """The class of a kernel by its name; attention before gemm, because cuDNN's names contain both."""
    low = name.lower()
    for kind in ("attention preparation", "attention", "quantisation", "norms and rope", "gemm", "copies"):
        if any(part in low for part in CLASSES[kind]):
            return kind
    return "other"
