"""A model's step as one JAX program per shape: traced by torch, interpreted op by op into JAX, compiled once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import torch
from jax.sharding import NamedSharding
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from turbort_tpu.bridge.convert import spec_of, to_jax, to_torch
from turbort_tpu.bridge.executor import OnPeak
from turbort_tpu.bridge.trace import count_calls, key_of, shapes_of, tensors_of
from turbort_tpu.bridge.trace import trace as trace_graph
from turbort_tpu.jax_executor import runtime
from turbort_tpu.jax_executor.aten import lookup
from turbort_tpu.jax_executor.site import Site, tracing
from turbort_tpu.jax_executor.spread import Spread, spread_of

log = logging.getLogger("turbort")


@dataclass(frozen=True, eq=False)
class Program:
    """A traced step: its graph, what the sites in it run, and constants that the trace met."""

    graph: fx.GraphModule
    sites: list[Site]
    structure: pytree.TreeSpec
    calls: dict[str, int]

    @property
    def weights(self) -> list[list[Any]]:
        """Packed weights per site."""
        return [site.weights for site in self.sites]

    @property
    def constants(self) -> dict[str, Tensor]:
        """Tensors that the model made on the host while it was traced, such as rotation tables."""
        return {node.target: getattr(self.graph, node.target) for node in self.graph.graph.nodes if node.op == "get_attr"}

    def __call__(
        self, weights: list[list[Any]], constants: dict[str, Any], parameters: list[Any], inputs: list[Any]
    ) -> list[Any]:
        """Interpret the graph on JAX arrays (or tracers)."""
        values: dict[fx.Node, Any] = {}
        given = iter([*parameters, *inputs])
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(given)
            elif node.op == "get_attr":
                values[node] = constants[node.target]
            elif node.op == "output":
                found: list[Any] = fx.map_arg(node.args[0], values.__getitem__)
                return list(found)
            else:
                args = fx.map_arg(node.args, values.__getitem__)
                named = fx.map_arg(node.kwargs, values.__getitem__)
                if node.target is torch.ops.turbort_tpu.site.default:
                    values[node] = self.sites[args[0]].run(weights[args[0]], list(args[1]))
                else:
                    values[node] = lookup(node.target)(*args, **named)
        raise AssertionError("a graph ends in its output")


def trace(
    step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Program, dict[str, Tensor], list[Tensor]]:
    """The step at these shapes, the model's own tensors by name, and the tensors among the arguments.

    Slots leave their JAX function in the trace.
    """
    with tracing() as sites:
        found = trace_graph(step, args, kwargs)
    return Program(found.graph, sites, found.structure, found.calls), found.parameters, tensors_of(args, kwargs)


class CompiledStep:
    """Calls a step as one compiled program; compiles anew for every new set of shapes, dtypes and plain values."""

    def __init__(self, step: Callable[..., Any], on_peak: OnPeak = lambda size: None) -> None:
        self._step = step
        self._on_peak = on_peak
        self._programs: dict[Any, _Loaded] = {}
        self._arrays: list[Any] | None = None

    @property
    def compiled(self) -> int:
        """How many programs exist: one per shape."""
        return len(self._programs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        key = key_of(args, kwargs)
        if key not in self._programs:
            self._programs[key] = self._load(args, kwargs)
        loaded = self._programs[key]
        outputs = loaded.run(*loaded.held, [loaded.placed(tensor) for tensor in tensors_of(args, kwargs)])
        count_calls(self._step, loaded.program.calls)
        return pytree.tree_unflatten([to_torch(array) for array in outputs], loaded.program.structure)

    def _load(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Loaded:
        runtime.start()
        started = time.perf_counter()
        whole = tensors_of(args, kwargs)
        spread = spread_of(whole)
        chips = f" over {spread.mesh.size} chips" if spread else ""
        log.info("compiling the step for %s%s", shapes_of(args), chips)
        if spread:
            args, kwargs = pytree.tree_map_only(Tensor, spread.share, (args, kwargs))
        program, parameters, _ = trace(self._step, args, kwargs)
        if self._arrays is None:
            self._arrays = [to_jax(tensor) for tensor in parameters.values()]
        constants = {name: to_jax(tensor) for name, tensor in program.constants.items()}
        held: Any = (program.weights, constants, self._arrays)
        if spread:
            held = spread.placed(held)
        loaded = _Loaded(program, held, spread)
        run = spread.wrap(program, whole) if spread else program
        loaded.run = jax.jit(run).lower(*held, [loaded.shape(tensor) for tensor in whole]).compile()
        peak = getattr(loaded.run.memory_analysis(), "peak_memory_in_bytes", 0) or 0
        self._on_peak(peak)
        log.info("compiled in %.1f s, peak %.2f GiB by the compiler's own account", time.perf_counter() - started, peak / 2**30)
        return loaded


@dataclass(eq=False)
class _Loaded:
    program: Program
    held: tuple[Any, ...]
    spread: Spread | None
    run: Any = None

    def placed(self, tensor: Tensor) -> Any:
        """An argument where the program wants it."""
        array = to_jax(tensor)
        return self.spread.placed(array, self.spread.spec(tensor)) if self.spread else array

    def shape(self, tensor: Tensor) -> Any:
        """The same without values."""
        found = spec_of(tensor)
        if self.spread is None:
            return found
        return jax.ShapeDtypeStruct(
            found.shape, found.dtype, sharding=NamedSharding(self.spread.mesh, self.spread.spec(tensor))
        )
