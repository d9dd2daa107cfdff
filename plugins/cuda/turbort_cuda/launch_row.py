"""What `turbort_cuda.launches` is made of: a kernel with the types and constants of one launch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

INT, A = "i32", "i32:16"
"""An integer argument, and one that is a multiple of 16."""


@dataclass(frozen=True)
class Launch:
    """A kernel with the types and constants of one launch; `mma` names the operand type its products must use.

    `registers`: what the launch allows a thread, where it says so.
    """

    name: str
    kernel: Any
    arguments: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int
    stages: int
    mma: str | None = None
    registers: int | None = None
