"""A model's step as one JAX program per shape: traced by torch, interpreted op by op into JAX, compiled once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from turbort.op import Slot, slots
from turbort_tpu.jax_executor import runtime
from turbort_tpu.jax_executor.aten import lookup
from turbort_tpu.jax_executor.convert import spec_of, to_jax, to_torch
from turbort_tpu.jax_executor.site import Site, tracing

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

    Nothing is computed: torch follows fake tensors through the model, and slots leave their JAX function in the trace.
    """
    parameters = dict(step.named_parameters()) | dict(step.named_buffers()) if isinstance(step, nn.Module) else {}
    leaves, form = pytree.tree_flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    structure: list[pytree.TreeSpec] = []

    def run(own: list[Tensor], given: list[Tensor]) -> list[Tensor]:
        filled = list(leaves)
        for place, tensor in zip(places, given, strict=True):
            filled[place] = tensor
        arguments, named = pytree.tree_unflatten(filled, form)
        if isinstance(step, nn.Module):
            result = torch.func.functional_call(step, dict(zip(parameters, own, strict=True)), arguments, named)
        else:
            result = step(*arguments, **named)
        flat, spec = pytree.tree_flatten(result)
        structure.append(spec)
        return flat

    inputs = [leaves[place] for place in places]
    before = _counts(step)
    with torch.no_grad(), _own_caches(step), tracing() as sites:
        graph = make_fx(run, tracing_mode="fake", _allow_non_fake_inputs=True)(list(parameters.values()), inputs)
    after = _counts(step)
    calls = {path: after[path] - before[path] for path in after}
    return Program(graph, sites, structure[0], calls), parameters, inputs


class CompiledStep:
    """Calls a step as one compiled program; compiles anew for every new set of shapes, dtypes and plain values."""

    def __init__(self, step: Callable[..., Any], on_peak: Callable[[int], None] = lambda size: None) -> None:
        self._step = step
        self._on_peak = on_peak
        self._programs: dict[Any, _Loaded] = {}

    @property
    def compiled(self) -> int:
        """How many programs exist: one per shape."""
        return len(self._programs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, form = pytree.tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        key = (form, tuple((tuple(x.shape), x.dtype) if isinstance(x, Tensor) else x for x in leaves))
        if key not in self._programs:
            self._programs[key] = self._load(args, kwargs)
        loaded = self._programs[key]
        outputs = loaded.run(*loaded.held, [to_jax(tensor) for tensor in tensors])
        for path, slot in _slots(self._step).items():
            slot.calls += loaded.program.calls[path]
        return pytree.tree_unflatten([to_torch(array) for array in outputs], loaded.program.structure)

    def _load(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Loaded:
        runtime.start()
        started = time.perf_counter()
        log.info("compiling the step for %s", ", ".join(_shapes(args)))
        program, parameters, inputs = trace(self._step, args, kwargs)
        for path, slot in _slots(self._step).items():
            slot.calls -= program.calls[path]  # tracing is not running
        if not self._programs:
            self._arrays = [to_jax(tensor) for tensor in parameters.values()]
        constants = {name: to_jax(tensor) for name, tensor in program.constants.items()}
        held = (program.weights, constants, self._arrays)
        compiled = jax.jit(program).lower(*held, [spec_of(tensor) for tensor in inputs]).compile()
        peak = getattr(compiled.memory_analysis(), "peak_memory_in_bytes", 0) or 0
        self._on_peak(peak)
        log.info("compiled in %.1f s, peak %.2f GiB by the compiler's own account", time.perf_counter() - started, peak / 2**30)
        return _Loaded(program, compiled, held)


@dataclass(frozen=True, eq=False)
class _Loaded:
    program: Program
    run: Callable[..., list[Any]]
    held: tuple[Any, ...]


def _slots(step: Any) -> dict[str, Slot]:
    return dict(slots(step)) if isinstance(step, nn.Module) else {}


def _counts(step: Any) -> dict[str, int]:
    return {path: slot.calls for path, slot in _slots(step).items()}


def _shapes(args: tuple[Any, ...]) -> Iterator[str]:
    for value in args:
        if isinstance(value, Tensor):
            yield "x".join(map(str, value.shape)) or "a scalar"


@contextmanager
def _own_caches(step: Any) -> Iterator[None]:
    """Give modules empty dictionaries for what they remember, and the old ones back: fake tensors must not stay."""
    ours = vars(nn.Module())
    kept = [
        (module, name, value)
        for module in (step.modules() if isinstance(step, nn.Module) else ())
        for name, value in vars(module).items()
        if type(value) is dict and name not in ours
    ]
    for module, name, _ in kept:
        vars(module)[name] = {}
    try:
        yield
    finally:
        for module, name, value in kept:
            vars(module)[name] = value
