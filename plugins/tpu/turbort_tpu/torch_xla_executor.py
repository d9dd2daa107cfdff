"""The classic route: torch_xla's lazy tensors, kernels through `call_jax`, one XLA program per step and shape.

torch_xla ends with 2.9 and needs exactly torch 2.9. An op that it cannot lower runs on the CPU without a word and breaks
a program in two; here that is an error. `torch._int_mm` is such an op, and `torch.matmul` of int8 tensors gives sums that wrap
at 8 bits; INT8 therefore only ever enters through the kernels.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from turbort.backend import MemoryStats
from turbort.errors import TurbortError
from turbort_tpu import probe
from turbort_tpu.bridge.call import Call, Flat
from turbort_tpu.bridge.executor import Executor, OnPeak

log = logging.getLogger("turbort")


class TorchXlaExecutor(Executor):
    """Tensors are lazy ones on device `xla`; PJRT_DEVICE decides what that is, the CPU where a TPU is emulated."""

    def __init__(self) -> None:
        os.environ.setdefault("PJRT_DEVICE", "CPU" if probe.emulated() else "TPU")
        import torch_xla
        from torch_xla.core import xla_builder

        self._xla, self._builder = torch_xla, xla_builder
        # Pallas runs in interpret mode on the CPU; `call_jax` cannot carry the callbacks of JAX's TPU simulator.
        self._mode = "compile" if os.environ["PJRT_DEVICE"] == "TPU" else "interpret"
        self._flats: dict[Flat, Flat] = {}

    def call(self, call: Call, weights: list[Any], tensors: list[Tensor]) -> tuple[Any, list[Tensor]]:
        flat, given = Flat.of(call, weights, tensors, self._mode)
        # `call_jax` caches by the identity of the function, so equal calls must be one object that stays. (Its
        # `override_hash` would confuse calls whose hashes meet.)
        flat = self._flats.setdefault(flat, flat)
        outputs = self._builder.call_jax(flat, tuple(given))
        return flat.outputs(given), list(outputs)

    def hold(self, tensor: Tensor) -> Tensor:
        return tensor.contiguous()

    def compile_step(self, step: Callable[..., Any], on_peak: OnPeak) -> Callable[..., Any]:
        return XlaStep(step)

    def synchronize(self) -> None:
        self._xla.sync(wait=True)

    def memory(self, total: int | None) -> MemoryStats:
        from torch_xla.core import xla_model

        try:
            found = xla_model.get_memory_info(self._xla.device())
        except RuntimeError:  # the runtime does not count, as on PJRT CPU
            return MemoryStats()
        return MemoryStats(found.get("bytes_used"), found.get("peak_bytes_used"), found.get("bytes_limit") or total)


class XlaStep:
    """Calls a step as one program; a step that would leave the program, or the device, is an error."""

    def __init__(self, step: Callable[..., Any]) -> None:
        import torch_xla

        self._run = torch_xla.compile(step, full_graph=True, name="turbort_step")

    @property
    def compiled(self) -> int:
        """How many programs this process has compiled."""
        return compiles()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        before, started = compiles(), time.perf_counter()
        with no_fallback("the step"):
            found = self._run(*args, **kwargs)
        if compiles() > before:
            log.info("compiled the step in %.1f s", time.perf_counter() - started)
        return found


def compiles() -> int:
    """Programs compiled so far in this process."""
    from torch_xla.debug import metrics

    found = metrics.metric_data("CompileTime")
    return int(found[0]) if found else 0


def fallbacks() -> dict[str, int]:
    """Ops that torch_xla ran on the CPU so far, with their counts: its counters in namespace `aten`."""
    from torch_xla.debug import metrics

    return {name: metrics.counter_value(name) for name in metrics.counter_names() if name.startswith("aten::")}


@contextmanager
def no_fallback(what: str) -> Iterator[None]:
    """TurbortError when torch_xla runs an op of the block on the CPU, which it does without a word."""
    before = fallbacks()
    yield
    moved = sorted(name for name, count in fallbacks().items() if count > before.get(name, 0))
    if moved:
        raise TurbortError(
            f"torch_xla cannot lower {', '.join(moved)} and ran {what} partly on the CPU",
            fix="use executor jax (unset TURBORT_TPU_EXECUTOR), or bring the op into a kernel",
        )
