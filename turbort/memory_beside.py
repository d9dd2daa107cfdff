"""What a run takes on a device beside weights, activations and caches: workspaces, the monitor's samples, and memory that an
allocator has and cannot use.

An allocator that keeps the memory of freed tensors in segments (torch's for CUDA and Ascend) loses some of it: a small tensor
that stays in a segment keeps the rest of it from a larger one. What the card loses is therefore more than the tensors:

    reserved = allocated + captured + fragmented
    captured   = (1 + FRAGMENTED) x activations of a step: a captured step's own pool, in which no tensor lies between its calls
    fragmented = FRAGMENTED x (activations + caches of the decoder): what comes and goes in a stage
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from turbort.memory_sites import parse_shape
from turbort.precision import PRECISIONS

if TYPE_CHECKING:
    from turbort.plan import Plan
    from turbort.profile import Profile

FRAGMENTED = 0.4
"""Reserved over allocated bytes of tensors that come and go, less one. On an H100: 1486 MiB for a captured step of 1096 MiB
(0.36), and 1785 MiB lost beside the 3876 MiB of a decoder's chunk (0.46) when memory ran out."""
FRAGMENTING = ("cuda", "ascend")
"""Backends whose allocator keeps segments."""
SAMPLED_ROWS = 32
"""Rows that the monitor copies per site and step, in float32; twice as many where it watches attention: of q and of k."""
WORKSPACE, LARGE_WORKSPACE, LARGE_FROM = (2 * 4096 + 16 * 8) << 10, 32 << 20, 90
"""Bytes that cuBLAS keeps per stream it ran in, as torch configures it, and from which compute capability on they are more."""


@dataclass(frozen=True)
class Second:
    """Second kernels that call sites may change to: bytes of their weights per transformer, and the plan with all of them."""

    weights: int = 0
    plan: Plan | None = None


def fragmented(plan: Plan, size: int) -> int:
    """Bytes that an allocator cannot use beside `size` bytes that come and go."""
    return round(FRAGMENTED * size) if plan.header.get("backend") in FRAGMENTING else 0


def workspace(plan: Plan) -> int:
    """Bytes that the linear algebra library keeps per stream it ran in."""
    if plan.header.get("backend") != "cuda":
        return 0
    digits = "".join(filter(str.isdigit, str(plan.header.get("arch", ""))))
    return LARGE_WORKSPACE if digits and int(digits) >= LARGE_FROM else WORKSPACE


def sample_bytes(plan: Plan, profile: Profile) -> int:
    """What the monitor's samples of one transformer take: one set per input that sites with integer activations read."""
    if profile.monitor.on_outlier == "ignore":
        return 0
    widths: dict[tuple[str, str], int] = {}
    for choice in plan:
        precision = PRECISIONS[choice.precision]
        attends = precision.kind == "attention"
        if choice.path.startswith("dit/blocks.") and (attends or (precision.emit or "").startswith("int8")):
            shape = parse_shape(choice.shapes[0])
            block = ".".join(choice.path.split(".")[:2])
            widths[block, choice.role] = 2 * prod(shape[2:]) if attends else shape[-1]
    return sum(4 * SAMPLED_ROWS * width for (_, role), width in widths.items() if role != "cross.kv")
