"""One whole DiT step at W with random weights: as a CUDA graph and eager; `--dense` without SLA, `--model` takes the 14B too."""

from __future__ import annotations

import argparse
import time
from functools import cache
from typing import Any

import torch

from benchmarks.cuda.results import Results
from benchmarks.cuda.timing import DEVICE, synchronize
from benchmarks.cuda.workload import LATENT, filled, planned


def prepared(args: argparse.Namespace) -> tuple[Any, Any, tuple[Any, ...], Any]:
    """The bound model, its graphed step, arguments of one call, and the plan; made once per process."""
    return _prepared(args.model, args.profile, args.dense)


@cache
@torch.inference_mode()
def _prepared(name: str, profile_name: str, dense: bool) -> tuple[Any, Any, tuple[Any, ...], Any]:
    import turbort_cuda

    from turbort.models.sites import build_dit

    spec, profile, registry, plan = planned(name, profile_name, dense=dense)
    model: Any = build_dit(spec, profile.attention)
    model = filled(model, "dit", plan, registry, torch.bfloat16)
    x = torch.randn(1, spec.dit.in_channels, *LATENT, device=DEVICE, dtype=torch.bfloat16)
    text = torch.randn(1, spec.dit.text_len, spec.dit.text_dim, device=DEVICE, dtype=torch.bfloat16)
    context = model.encode_text(text)
    arguments = (x, torch.full((1,), 900.0, device=DEVICE), context)
    cuda = turbort_cuda.Cuda()
    return model, cuda.compile_step(model, registry.devices("cuda")[0]), arguments, plan


@torch.inference_mode()
def run(results: Results, args: argparse.Namespace) -> None:
    kind = "dense" if args.dense else "SLA 0.1"
    started = time.perf_counter()
    model, step, arguments, plan = prepared(args)
    synchronize()
    results.note("model made and quantised", seconds=time.perf_counter() - started)
    if not args.quick:
        for kernel, count in _kernels(plan).items():
            results.note(f"plan {kind}", kernel=kernel, sites=count)
    started = time.perf_counter()
    step(*arguments)
    synchronize()
    results.note("first call, captured", seconds=time.perf_counter() - started, refused=str(getattr(step, "refused", "no graph")))
    results.time(f"{args.model} step {kind}, CUDA graph", lambda: step(*arguments), seconds=1.5)
    results.time(f"{args.model} step {kind}, eager", lambda: model(*arguments), seconds=1.0)
    if DEVICE == "cuda":
        results.note("peak memory", gib=torch.cuda.max_memory_allocated() / 2**30)


def _kernels(plan: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for choice in plan:
        if choice.path.startswith("dit/"):
            key = f"{choice.op} {choice.precision} {choice.kernel}" + (f" -> {choice.emit}" if choice.emit else "")
            found[key] = found.get(key, 0) + 1
    return found
