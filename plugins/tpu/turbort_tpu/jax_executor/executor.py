"""The default executor: calls run in JAX, a step becomes one jitted program per shape."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from torch import Tensor

from turbort.backend import MemoryStats
from turbort_tpu.bridge.call import Call
from turbort_tpu.bridge.convert import spec_of, to_jax, to_torch
from turbort_tpu.bridge.executor import Executor, OnPeak
from turbort_tpu.jax_executor import runtime
from turbort_tpu.jax_executor.shelf import Shelf
from turbort_tpu.jax_executor.site import Site, leave, traced
from turbort_tpu.kernels import common


class JaxExecutor(Executor):
    """Tensors stay on the host and cross at every call, except inside a compiled step."""

    def __init__(self) -> None:
        self.shelf = Shelf()

    def call(self, call: Call, weights: list[Any], tensors: list[Tensor]) -> tuple[Any, list[Tensor]]:
        if traced() is not None:
            shapes = jax.eval_shape(call, weights, [spec_of(tensor) for tensor in tensors])
            site = Site(call.text, lambda w, a: jax.tree.leaves(call(w, a)), weights, jax.tree.leaves(shapes))
            return shapes, leave(site, tensors)
        runtime.start()
        outputs = _compiled()(call, weights, [to_jax(tensor) for tensor in tensors], common.mode())
        return outputs, [to_torch(array) for array in jax.tree.leaves(outputs)]

    def hold(self, tensor: Tensor) -> Any:
        return spec_of(tensor) if tensor.is_meta else to_jax(tensor)

    def compile_step(self, step: Callable[..., Any], on_peak: OnPeak) -> Callable[..., Any]:
        from turbort_tpu.jax_executor.step import CompiledStep

        return CompiledStep(step, on_peak, self.shelf)

    def use_ahead(self, folder: Path) -> None:
        self.shelf.add(folder)

    def memory(self, total: int | None) -> MemoryStats:
        return runtime.device_memory(total)


@functools.cache
def _compiled() -> Callable[..., Any]:
    """Runs any call; `mode` only keys the programs, the kernels read it themselves."""
    return jax.jit(lambda call, weights, arrays, mode: call(weights, arrays), static_argnums=(0, 3))
