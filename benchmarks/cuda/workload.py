"""Workload W (Wan2.1-T2V-1.3B, 832x480, 81 frames), and a whole model with random weights in any plan."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from benchmarks.cuda.timing import DEVICE

TOY = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether the benchmarks only rehearse: tiny sizes on the CPU under Triton's interpreter, to test the benchmarks themselves."""
TOKENS, DIM, FFN, HEADS, HEAD, TEXT = (270, 256, 384, 2, 128, 70) if TOY else (32760, 1536, 8960, 12, 128, 512)
PIXELS = (32, 48) if TOY else (480, 832)
FRAMES = 5 if TOY else 81
LATENT = (1 + (FRAMES - 1) // 4, PIXELS[0] // 8, PIXELS[1] // 8)
"""Frames, height and width of the latent video."""
MODEL = "tiny" if TOY else "wan2.1-t2v-1.3b"
LINEARS = {
    "qkv/out 1536->1536": (DIM, DIM),
    "ffn.in 1536->8960": (FFN, DIM),
    "ffn.out 8960->1536": (DIM, FFN),
    **({} if TOY else {"14B 5120->5120": (5120, 5120), "14B ffn.in 5120->13824": (13824, 5120)}),
}
"""N and K of the linears; M is TOKENS."""


def registry_here() -> Any:
    """A registry that has the CUDA plugin also where it comes from a source tree on the path, without entry points."""
    from turbort.registry import Registry

    registry = Registry()
    if "cuda" in registry.backends:
        return registry
    import turbort_cuda

    return Registry(extra=[turbort_cuda])


def planned(model: str, profile_name: str, *, dense: bool = False) -> tuple[Any, Any, Any, Any]:
    """Spec, profile, registry and plan of `model` under a shipped profile on this machine's first GPU."""
    from turbort.models.spec import get_model
    from turbort.planner import Target, make_plan
    from turbort.profile import load_profile

    registry = registry_here()
    spec = get_model(model)
    profile = load_profile(profile_name)
    if dense:
        profile = profile.model_copy(update={"attention": profile.attention.model_copy(update={"kind": "dense"})})
    target = Target("cuda", registry.devices("cuda")[0])
    return spec, profile, registry, make_plan(spec, profile, registry, target=target, size=PIXELS[::-1], frames=FRAMES)


def filled(model: nn.Module, stage: str, plan: Any, registry: Any, dtype: torch.dtype, *, also: Any = None) -> nn.Module:
    """`model` bound to the plan with random weights of a trained model's spread, made and quantised on the GPU one at a time."""
    from turbort.bench import fill
    from turbort.bind import Binder

    device = torch.device(DEVICE)
    binder = Binder(model, plan, stage, registry, device=device, dtype=dtype)
    binder.also = also(model) if also else None
    fill(binder, device)
    return model
