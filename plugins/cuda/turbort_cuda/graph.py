"""A denoising step as one CUDA graph per shape, and per set of call sites that run their second kernel.

Inputs are copied into static buffers and the graph is replayed: no launch overhead, no host synchronisation. Where sites
can switch kernels, a graph stays valid for the set it was captured with; another set gets a graph of its own at its first
call. Capturing launches nothing, and every second kernel was warmed up before the first capture, so that call is late by
the time the host needs to go through one step. Graphs of one step never run at once, so they share one memory pool.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from turbort.backend import Switches
from turbort.op import Slot, counted
from turbort_cuda.pool import SessionPool

log = logging.getLogger("turbort")
KEPT = 8
"""Graphs that are kept: shapes, sets of promoted sites, with and without samples. They share the memory of the largest."""


@dataclass
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: list[Any]
    output: Any
    calls: list[tuple[Slot, int]] = field(default_factory=list)

    def load(self, leaves: list[Any]) -> None:
        """Copy the call's tensors into the static ones, in one launch per dtype."""
        pairs = [(static, leaf) for static, leaf in zip(self.inputs, leaves, strict=True) if isinstance(leaf, Tensor)]
        for dtype in {leaf.dtype for _, leaf in pairs}:
            same = [pair for pair in pairs if pair[1].dtype == dtype]
            torch._foreach_copy_([static for static, _ in same], [leaf for _, leaf in same])

    def count(self) -> None:
        """A replay runs what was captured: the receipt must say so."""
        for slot, calls in self.calls:
            slot.calls += calls


class GraphedStep:
    """Calls `step` through a CUDA graph; a step that cannot be captured runs as it is, and the log says why."""

    def __init__(self, step: Callable[..., Any], device: str, switches: Switches | None = None) -> None:
        self.step = step
        self.switches = switches
        self._slots = list(counted(step).values()) if isinstance(step, nn.Module) else []
        self._warm: set[Any] = set()
        self._pool: Any = None
        self.device = torch.device(device)
        self.refused: str | None = None
        self._graphs: dict[Any, _Captured] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, form = pytree.tree_flatten((args, kwargs))
        if self.refused or not _capturable(leaves, self.device):
            return self.step(*args, **kwargs)
        shape = (str(form), *map(_signature, leaves))
        key = (self.switches.key if self.switches else None, shape)
        captured = self._graphs.get(key)
        if captured is None:
            captured = self._capture(leaves, form, shape)
            if captured is None:
                return self.step(*args, **kwargs)
            while len(self._graphs) >= KEPT:
                self._graphs.pop(next(iter(self._graphs)))
            self._graphs[key] = captured
        captured.load(leaves)
        captured.graph.replay()
        captured.count()
        # The static output is overwritten by the next replay.
        return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, captured.output)

    def _capture(self, leaves: list[Any], form: Any, shape: Any) -> _Captured | None:
        counts = [(slot.calls, slot.earlier) for slot in self._slots]
        try:
            with SessionPool.outside(self.device):
                return self._captured(leaves, form, shape)
        finally:
            # Warm-ups and captures are no part of the video, nor is what second kernels were called for while warming up; a
            # switch moves a site's calls to `earlier`. A step that runs as it is counts by itself.
            for slot, (calls, earlier) in zip(self._slots, counts, strict=True):
                slot.calls, slot.earlier = calls, earlier

    def _warm_up(self, args: Any, kwargs: Any, shape: Any) -> bool:
        """Compile kernels and fill caches, which a capture may not do: once per shape, for first and second kernels."""
        if shape in self._warm:
            return False
        if self.switches is not None:
            with self.switches.everything_promoted():
                self.step(*args, **kwargs)
        self.step(*args, **kwargs)
        self._warm.add(shape)
        return True

    def _captured(self, leaves: list[Any], form: Any, shape: Any) -> _Captured | None:
        static = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(static, form)
        stream: Any = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self.device))
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(stream):
                warmed = self._warm_up(args, kwargs, shape)
            if warmed:
                # What the warm-up's activations took is given back: a capture cannot take it from the allocator.
                torch.cuda.synchronize(self.device)
                torch.cuda.empty_cache()
            torch.cuda.current_stream(self.device).wait_stream(stream)
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            before = [slot.calls for slot in self._slots]
            with _capturing(graph, self._pool, stream):
                output = self.step(*args, **kwargs)
        except RuntimeError as error:
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            self.refused = str(error).strip().splitlines()[0]
            log.warning("this step cannot become a CUDA graph and runs kernel by kernel: %s", self.refused)
            torch.cuda.synchronize(self.device)
            return None
        ran = [(slot, slot.calls - was) for slot, was in zip(self._slots, before, strict=True)]
        return _Captured(graph, static, output, [(slot, calls) for slot, calls in ran if calls])


@contextmanager
def _capturing(graph: torch.cuda.CUDAGraph, pool: Any, stream: Any) -> Iterator[None]:
    """Record the block into `graph`. As `torch.cuda.graph`, which also waits for the device and empties every cache each time.

    Other threads may go on: the next expert's weights are read, pinned and quantised meanwhile.
    """
    with torch.cuda.stream(stream):
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            yield
        finally:
            graph.capture_end()


def _capturable(leaves: list[Any], device: torch.device) -> bool:
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    same = all(leaf.device.type == "cuda" and leaf.device.index in (device.index, None) for leaf in tensors)
    return bool(tensors) and same and not any(leaf.requires_grad for leaf in tensors)


def _signature(leaf: Any) -> Any:
    return (tuple(leaf.shape), leaf.stride(), leaf.dtype) if isinstance(leaf, Tensor) else leaf
