"""When a device runs out of memory although the forecast said otherwise: what counts as that, and trying once more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from turbort.errors import UnavailableError

Made = TypeVar("Made")
WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory")
"""How drivers and allocators say it where torch has no type of its own for it."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on the device or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in WORDS)


def attempt(
    work: Callable[[], Made], step_down: Callable[[], None], again: Callable[[], Made], tried: Callable[[], Sequence[str]]
) -> Made:
    """What `work` returns; when it runs out of memory, `step_down` and then what `again` returns.

    The failed call's tensors are let go before `step_down` begins. Raises UnavailableError with `tried()` when memory runs
    out a second time.
    """
    try:
        return work()
    except Exception as error:
        if not out_of_memory(error):
            raise
    step_down()
    try:
        return again()
    except Exception as error:
        if not out_of_memory(error):
            raise
        reason = str(error).strip().partition("\n")[0][:200]
    raise UnavailableError(
        "the device ran out of memory, and again after a step down",
        tried=[*tried(), *([reason] if reason else [])],
        fix="name the memory that is there with --memory-budget, or choose a smaller size or fewer frames",
    )
