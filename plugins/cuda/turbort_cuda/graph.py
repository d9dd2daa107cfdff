"""A denoising step as one CUDA graph per shape.

Inputs are copied into static buffers and the graph is replayed: no launch overhead, no host synchronisation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from turbort_cuda.pool import SessionPool

log = logging.getLogger("turbort")
WARM_UPS = 2
KEPT = 4
"""Shapes whose graphs are kept; each holds the activations of one step."""


@dataclass
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: list[Any]
    output: Any

    def load(self, leaves: list[Any]) -> None:
        """Copy the call's tensors into the static ones, in one launch per dtype."""
        pairs = [(static, leaf) for static, leaf in zip(self.inputs, leaves, strict=True) if isinstance(leaf, Tensor)]
        for dtype in {leaf.dtype for _, leaf in pairs}:
            same = [pair for pair in pairs if pair[1].dtype == dtype]
            torch._foreach_copy_([static for static, _ in same], [leaf for _, leaf in same])


class GraphedStep:
    """Calls `step` through a CUDA graph; a step that cannot be captured runs as it is, and the log says why."""

    def __init__(self, step: Callable[..., Any], device: str) -> None:
        self.step = step
        self.device = torch.device(device)
        self.refused: str | None = None
        self._graphs: dict[Any, _Captured] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, form = pytree.tree_flatten((args, kwargs))
        if self.refused or not _capturable(leaves, self.device):
            return self.step(*args, **kwargs)
        key = (str(form), *map(_signature, leaves))
        captured = self._graphs.get(key)
        if captured is None:
            captured = self._capture(leaves, form)
            if captured is None:
                return self.step(*args, **kwargs)
            while len(self._graphs) >= KEPT:
                self._graphs.pop(next(iter(self._graphs)))
            self._graphs[key] = captured
        captured.load(leaves)
        captured.graph.replay()
        # The static output is overwritten by the next replay.
        return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, captured.output)

    def _capture(self, leaves: list[Any], form: Any) -> _Captured | None:
        with SessionPool.outside(self.device):
            return self._captured(leaves, form)

    def _captured(self, leaves: list[Any], form: Any) -> _Captured | None:
        static = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(static, form)
        stream: Any = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self.device))
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):  # compiles kernels and fills caches, which a capture may not do
                    self.step(*args, **kwargs)
            torch.cuda.current_stream(self.device).wait_stream(stream)
            torch.cuda.synchronize(self.device)
            with torch.cuda.graph(graph, stream=stream):
                output = self.step(*args, **kwargs)
        except RuntimeError as error:
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            self.refused = str(error).strip().splitlines()[0]
            log.warning("this step cannot become a CUDA graph and runs kernel by kernel: %s", self.refused)
            torch.cuda.synchronize(self.device)
            return None
        return _Captured(graph, static, output)


def _capturable(leaves: list[Any], device: torch.device) -> bool:
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    same = all(leaf.device.type == "cuda" and leaf.device.index in (device.index, None) for leaf in tensors)
    return bool(tensors) and same and not any(leaf.requires_grad for leaf in tensors)


def _signature(leaf: Any) -> Any:
    return (tuple(leaf.shape), leaf.stride(), leaf.dtype) if isinstance(leaf, Tensor) else leaf
