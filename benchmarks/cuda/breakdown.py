"""Where a step's time goes: every kernel of one eager step, by class; idle is what the graph removes."""

from __future__ import annotations

import argparse

import torch
from turbort_cuda.trace import classes, kernels

from benchmarks.cuda.results import Results
from benchmarks.cuda.step import prepared
from benchmarks.cuda.timing import DEVICE

SHOWN = 25


@torch.inference_mode()
def run(results: Results, args: argparse.Namespace) -> None:
    model, step, arguments, _ = prepared(args)
    for _ in range(2):
        model(*arguments)
    found = kernels(lambda: model(*arguments)) if DEVICE == "cuda" else {}
    total = 1e3 * sum(traced.seconds for traced in found.values())
    for kind, seconds in sorted(classes(found).items(), key=lambda item: -item[1]):
        results.note(f"class {kind}", ms=1e3 * seconds, share=1e3 * seconds / total)
    for name, traced in sorted(found.items(), key=lambda item: -item[1].seconds)[:SHOWN]:
        results.note(f"kernel {name[:70]}", ms=1e3 * traced.seconds, calls=traced.calls)
    whole = results.time("step, CUDA graph", lambda: step(*arguments), seconds=1.0)
    if whole:
        results.note("idle in the graph", ms=whole.ms - total, share=(whole.ms - total) / whole.ms)
