"""A model's step as a JAX program: traced by torch, interpreted op by op into JAX.

A run and `turbort compile` both make their programs here, so that what one wrote is what the other would compile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from turbort_tpu.bridge.trace import tensors_of
from turbort_tpu.bridge.trace import trace as trace_graph
from turbort_tpu.jax_executor.aten import lookup
from turbort_tpu.jax_executor.site import Site, tracing
from turbort_tpu.jax_executor.spread import Spread


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

    @property
    def text(self) -> str:
        """What it computes, in words: torch's graph, and the call behind each site; the same in every process."""
        return "\n".join([self.graph.code, *(site.text for site in self.sites)])

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


@dataclass(frozen=True, eq=False)
class Staged:
    """A program with what it is called on: arrays, or their shapes where nothing runs.

    Attributes:
        held: packed weights per site, constants by name, and the model's own tensors.
        inputs: shapes of the tensors among the step's arguments, of the whole batch.
        spread: how the batch lies on several chips; None for one.
    """

    program: Program
    held: tuple[Any, ...]
    inputs: list[jax.ShapeDtypeStruct]
    spread: Spread | None = None

    def traced(self) -> jax.stages.Traced:
        """The jaxpr; `.lower().compile()` is the executable."""
        run = self.spread.wrap(self.program, self.inputs) if self.spread else self.program
        return jax.jit(run).trace(*self.held, self.inputs)

    @property
    def trees(self) -> tuple[Any, Any]:
        """The structures of the executable's arguments and results."""
        return jax.tree.structure(((*self.held, self.inputs), {})), jax.tree.structure([0] * self.program.structure.num_leaves)
