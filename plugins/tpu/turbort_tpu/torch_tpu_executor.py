"""The successor of torch_xla: TorchTPU's device `tpu`, kernels through `torch.tpu.pallas.jax_op`, steps by its compiler.

TorchTPU ends the process at the first op on a machine without a TPU, so nothing of it is imported unless the PCI bus shows
one. It has no 8-bit integer product of its own; INT8 enters through the kernels. Written against torch_tpu 0.2 and run
against a stand-in of its interface only (docs/tpu.md).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

import jax
import torch
from torch import Tensor

from turbort.backend import MemoryStats
from turbort.errors import UnavailableError
from turbort_tpu import probe
from turbort_tpu.bridge.call import Call, Flat
from turbort_tpu.bridge.executor import Executor, OnPeak
from turbort_tpu.bridge.trace import Traced, count_calls, key_of, shapes_of, tensors_of, trace
from turbort_tpu.executors import EXECUTOR

log = logging.getLogger("turbort")


class TorchTpuExecutor(Executor):
    """Every distinct call becomes one custom op, named after its function; a step is traced and compiled whole."""

    backend, mode = "tpu", "compile"

    def __init__(self) -> None:
        if not probe.present():
            raise UnavailableError(
                "executor torch_tpu needs a TPU: TorchTPU ends the process at its first op without one",
                fix=f"unset {EXECUTOR}, or run on a TPU VM",
            )
        import_module("torch_tpu")
        for entry in entry_points(group="torch.backends", name="torch_tpu"):
            entry.load()()  # does nothing a second time; torch calls it itself unless its autoload is off
        self._jax_op = import_module("torch.tpu.pallas").jax_op
        self._ops: dict[Flat, Callable[..., Any]] = {}

    def call(self, call: Call, weights: list[Any], tensors: list[Tensor]) -> tuple[Any, list[Tensor]]:
        flat, given = Flat.of(call, weights, tensors, self.mode)
        if flat not in self._ops:
            self._ops[flat] = self._jax_op(f"turbort_tpu::{call.name}_{len(self._ops)}", as_list(flat))
        return flat.outputs(given), list(self._ops[flat](given))

    def hold(self, tensor: Tensor) -> Tensor:
        return tensor.contiguous()

    def compile_step(self, step: Callable[..., Any], on_peak: OnPeak) -> Callable[..., Any]:
        return TpuStep(step, self.backend)

    def synchronize(self) -> None:
        torch.accelerator.synchronize()

    def memory(self, total: int | None) -> MemoryStats:
        found = torch.accelerator.memory_stats()
        used, peak = (found.get(f"allocated_bytes.all.{kind}") or None for kind in ("current", "peak"))
        return MemoryStats(used, peak, total)


def as_list(flat: Flat) -> Callable[[list[jax.Array]], list[jax.Array]]:
    """`flat` with the signature that `jax_op` reads its schema from."""

    def run(arrays: list[jax.Array]) -> list[jax.Array]:
        return flat(*arrays)

    return run


class TpuStep:
    """Calls a step as one graph per shape. Tracing it here leaves the compiler a graph of aten ops and kernels."""

    def __init__(self, step: Callable[..., Any], backend: str) -> None:
        self._step, self._backend = step, backend
        self._programs: dict[Any, tuple[Traced, Callable[..., Any]]] = {}

    @property
    def compiled(self) -> int:
        """How many programs exist: one per shape."""
        return len(self._programs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        key = key_of(args, kwargs)
        if key not in self._programs:
            started = time.perf_counter()
            log.info("compiling the step for %s", shapes_of(args))
            traced = trace(self._step, args, kwargs)
            self._programs[key] = traced, torch.compile(traced.graph, backend=self._backend, dynamic=False)
            log.info("traced in %.1f s", time.perf_counter() - started)
        traced, run = self._programs[key]
        outputs = run(list(traced.parameters.values()), tensors_of(args, kwargs))
        count_calls(self._step, traced.calls)
        return torch.utils._pytree.tree_unflatten(list(outputs), traced.structure)
