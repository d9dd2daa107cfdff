"""What the checks at the workload's shapes share: their type and random inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.cuda.timing import DEVICE

Pair = tuple[Callable[[], Any], Callable[[], Any]]
Check = tuple[str, str, Callable[[], Pair]]
"""Name, precision whose budget holds, and what makes the kernel's call and the true one; made late, since it takes memory."""


def randn(*shape: int, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0) -> Tensor:
    """N(0, scale), the same for the same shape."""
    draw = torch.Generator(DEVICE).manual_seed(sum(shape))
    return torch.randn(*shape, device=DEVICE, generator=draw).mul_(scale).to(dtype)
