"""One whole DiT step at W with random weights: eager and as a CUDA graph, SLA and dense; `--model` takes the 14B too."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from benchmarks.cuda.results import Results
from benchmarks.cuda.workload import filled, planned


@torch.inference_mode()
def prepared(args: argparse.Namespace, *, dense: bool = False) -> tuple[Any, Any, tuple[Any, ...], Any]:
    """The bound model, its graphed step, arguments of one call, and the plan."""
    import turbort_cuda

    from turbort.models.sites import build_dit

    spec, profile, registry, plan = planned(args.model, args.profile, dense=dense)
    model: Any = build_dit(spec, profile.attention)
    model = filled(model, "dit", plan, registry, torch.bfloat16)
    x = torch.randn(1, spec.dit.in_channels, 21, 60, 104, device="cuda", dtype=torch.bfloat16)
    text = torch.randn(1, spec.dit.text_len, spec.dit.text_dim, device="cuda", dtype=torch.bfloat16)
    context = model.encode_text(text)
    arguments = (x, torch.full((1,), 900.0, device="cuda"), context)
    device = turbort_cuda.Cuda().probe()[0]
    return model, turbort_cuda.Cuda().compile_step(model, device), arguments, plan


@torch.inference_mode()
def run(results: Results, args: argparse.Namespace) -> None:
    for dense in (False, True) if args.dense else (False,):
        kind = "dense" if dense else "SLA 0.1"
        model, step, arguments, plan = prepared(args, dense=dense)
        for kernel, count in _kernels(plan).items():
            results.note(f"plan {kind}", kernel=kernel, sites=count)
        results.time(f"{args.model} step {kind}, eager", lambda m=model, a=arguments: m(*a), seconds=1.5)
        results.time(f"{args.model} step {kind}, CUDA graph", lambda s=step, a=arguments: s(*a), seconds=1.5)
        results.note(f"{kind} graph", refused=str(step.refused), peak_gib=torch.cuda.max_memory_allocated() / 2**30)
        del model, step, arguments
        torch.cuda.empty_cache()


def _kernels(plan: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for choice in plan:
        if choice.path.startswith("dit/"):
            key = f"{choice.op} {choice.precision} {choice.kernel}" + (f" -> {choice.emit}" if choice.emit else "")
            found[key] = found.get(key, 0) + 1
    return found
