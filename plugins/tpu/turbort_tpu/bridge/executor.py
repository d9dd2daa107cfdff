"""What every executor does: run a function of JAX arrays on torch tensors, hold weights, compile a step."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from turbort.backend import MemoryStats
from turbort_tpu import executors

if TYPE_CHECKING:
    from turbort_tpu.bridge.call import Call

log = logging.getLogger("turbort")
OnPeak = Callable[[int], None]


class Executor(ABC):
    """How kernels meet torch. One object per process and name; `active()` gives the one in use."""

    @abstractmethod
    def call(self, call: Call, weights: list[Any], tensors: list[Tensor]) -> tuple[Any, list[Tensor]]:
        """Run `call` on packed weights and tensors; returns the structure of the outputs and their tensors in order.

        The structure is a JAX pytree whose leaves stand for the tensors.
        """

    @abstractmethod
    def hold(self, tensor: Tensor) -> Any:
        """A part of a packed weight in the form that `call` takes it; of a tensor on meta, its shape."""

    @abstractmethod
    def compile_step(self, step: Callable[..., Any], on_peak: OnPeak) -> Callable[..., Any]:
        """`step` as one program per shape; `on_peak` hears the compiler's peak memory in bytes where it is known."""

    def use_ahead(self, folder: Path) -> None:
        """Load programs that fit from a folder of `turbort compile`, which has been checked against its manifest."""
        log.warning("executor %s compiles its programs itself; those in %s are not used", executors.chosen().name, folder)

    def synchronize(self) -> None:
        """Wait for the device."""

    def memory(self, total: int | None) -> MemoryStats:
        """What the runtime says of a device with `total` bytes; None where it does not say."""
        return MemoryStats(total=total)


@cache
def _made(target: str) -> Executor:
    module, _, name = target.partition(":")
    found: Executor = getattr(import_module(module), name)()
    return found


def active() -> Executor:
    """The executor that `TURBORT_TPU_EXECUTOR` names, with its packages imported."""
    return _made(executors.chosen().target)
