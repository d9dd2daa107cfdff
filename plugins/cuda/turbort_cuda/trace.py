"""Every kernel that a call launches, with its time on the GPU, and what kind of work it is by its name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

CLASSES: Mapping[str, tuple[str, ...]] = {
    "attention preparation": ("sums_kernel", "codes_kernel", "choose_kernel", "state_kernel"),
    "attention": ("attention_kernel", "flash", "cudnn", "sdpa", "fmha"),
    "quantisation": ("rows_kernel", "blocks_kernel"),
    "norms and rope": ("norm_kernel", "rope_kernel"),
    "gemm": (
        "linear8_kernel",
        "hopper_linear",
        "block128_kernel",
        "int4_kernel",
        "bsq_kernel",
        "conv3d",
        "gemm",
        "nvjet",
        "cutlass",
        "xmma",
    ),
    "copies": ("memcpy", "copy", "cat", "fill", "memset", "phases_kernel"),
}
"""Parts of kernel names by class. The first that fits counts: attention before gemm, because cuDNN's names contain both."""


@dataclass
class Traced:
    """One kernel: seconds in all, and launches."""

    seconds: float = 0.0
    calls: int = 0


def kind_of(name: str) -> str:
    """The class of a kernel by its name."""
    low = name.lower()
    return next((kind for kind, parts in CLASSES.items() if any(part in low for part in parts)), "other")


def kernels(call: Callable[[], Any]) -> dict[str, Traced]:
    """What one call ran on the GPU, by kernel name. The call must have run before: compiling is not its work."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        call()
        torch.cuda.synchronize()
    found: dict[str, Traced] = defaultdict(Traced)
    for event in seen.events() or ():
        if "cuda" in str(event.device_type).lower():
            found[event.name].seconds += event.device_time / 1e6
            found[event.name].calls += 1
    return dict(found)


def classes(found: Mapping[str, Traced]) -> dict[str, float]:
    """Seconds by class."""
    rows: dict[str, float] = defaultdict(float)
    for name, traced in found.items():
        rows[kind_of(name)] += traced.seconds
    return dict(rows)
