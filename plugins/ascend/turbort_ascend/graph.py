"""Denoising steps as NPUGraphs: captured once per shape, replayed with new inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from turbort.kernel import Kernel
from turbort.op import slots

WARM_UP = 2
"""Plain runs before a capture: torch-npu builds workspaces and caches in the first ones."""


def uncapturable(step: Callable[..., Any], table: Iterable[Kernel]) -> list[str]:
    """Kernels bound in `step` that the vendor does not allow in a graph, such as `attention/fusion`."""
    if not isinstance(step, nn.Module):
        return []
    allowed = {(kernel.op, f"ascend/{kernel.name}") for kernel in table if kernel.capturable}
    used = {(slot.op.name, slot.provider) for slot in slots(step).values() if slot.provider.startswith("ascend/")}
    return sorted(f"{op}:{provider}" for op, provider in used - allowed)


class GraphStep:
    """A step that replays an NPUGraph per signature (shapes, dtypes and every argument that is no tensor).

    Inputs are copied into the graph's own tensors before each replay and the output is copied out after it, so a
    caller may keep results and change inputs as with the step itself.
    """

    def __init__(self, step: Callable[..., Any]) -> None:
        self.step = step
        self._captured: dict[Any, _Captured] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, tree = pytree.tree_flatten((args, kwargs))
        key = (tree, tuple(_signature(leaf) for leaf in leaves))
        if key not in self._captured:
            self._captured[key] = _Captured(self.step, leaves, tree)
        return self._captured[key].run(leaves)


class _Captured:
    def __init__(self, step: Callable[..., Any], leaves: list[Any], tree: Any) -> None:
        npu: Any = torch.npu  # type: ignore[attr-defined]
        self.inputs = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(self.inputs, tree)
        side = npu.Stream()
        side.wait_stream(npu.current_stream())
        with npu.stream(side):
            for _ in range(WARM_UP):
                step(*args, **kwargs)
        npu.current_stream().wait_stream(side)
        self.graph = npu.NPUGraph()
        with npu.graph(self.graph):
            self.output = step(*args, **kwargs)

    def run(self, leaves: list[Any]) -> Any:
        for mine, given in zip(self.inputs, leaves, strict=True):
            if isinstance(mine, Tensor):
                mine.copy_(given)
        self.graph.replay()
        return pytree.tree_map_only(Tensor, torch.clone, self.output)


def _signature(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.dtype, leaf.device
    return type(leaf), repr(leaf)
