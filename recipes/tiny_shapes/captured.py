"""Forward and backward passes of a step as one CUDA graph.

The networks are small: a step launches 600 to 3,000 kernels of some 20 us each, and starting them one by one takes longer than
running them. A graph starts them all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

WARMUP = 3  # plain calls before recording, in which kernels are compiled and libraries choose theirs


class Pool:
    """Memory that the graphs of one stage share; they never run at the same time."""

    def __init__(self, on: bool) -> None:
        self.on = on
        self.handle: Any = torch.cuda.graph_pool_handle() if on else None


class Captured:
    """`fn(*tensors)` returning tensors, recorded at the call after `WARMUP` plain ones and replayed from then on.

    Shapes must stay. What fn reads beside its arguments is read again in every replay, where it lies; so it must be changed in
    place. Gradients are added to `.grad`, which must exist beforehand (`Optimisers(..., keep_grads=True)`). Random numbers
    of the device differ between replays. fn must not ask the device for a value.
    """

    def __init__(self, fn: Callable[..., Sequence[Tensor]], pool: Pool) -> None:
        self.fn, self.pool = fn, pool
        self.calls = 0
        self.graph: Any = None
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        if not self.pool.on:
            return list(self.fn(*inputs))
        if self.graph is None and self.calls < WARMUP:
            self.calls += 1
            return self._aside(inputs)
        if self.graph is None:
            self._record(inputs)
        for held, new in zip(self.inputs, inputs, strict=True):
            held.copy_(new)
        self.graph.replay()
        return [y.clone() for y in self.outputs]

    def _aside(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """A plain call on a stream of its own, as recording will be."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            outputs = list(self.fn(*inputs))
        torch.cuda.current_stream().wait_stream(stream)
        return outputs

    def _record(self, inputs: Sequence[Tensor]) -> None:
        self.inputs = [x.clone() for x in inputs]
        self.graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        # Other threads (NCCL's watchdog) may call the driver meanwhile.
        with torch.cuda.graph(self.graph, pool=self.pool.handle, capture_error_mode="thread_local"):
            self.outputs = [y.detach() for y in self.fn(*self.inputs)]
