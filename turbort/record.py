"""Recording: run a model once on `meta` and write down every call site, before any weight exists."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from turbort.kernel import Call, TensorSpec
from turbort.op import Slot, slots
from turbort.quant.qtensor import QTensor

ELSEWHERE = "(outside any slot)"
_LOOKS = frozenset({"__get__", "size", "dim", "numel", "is_floating_point"})  # ask about a tensor, do not read it


class Recorder(TorchFunctionMode):
    """Stands in for every slot of a model and notes what each one is asked.

    References run on meta once per distinct call; a repeated call gets fresh meta tensors of the same shapes,
    so a 40-block model records in the time of a few blocks. As a torch function mode it also sees reads of a
    slot's output outside any slot: such an output must stay a plain tensor, so it gets the consumer ELSEWHERE.
    """

    def __init__(self) -> None:
        super().__init__()
        self._inside = False
        self.calls: dict[str, list[Call]] = {}
        self._outputs: dict[tuple[Any, ...], Any] = {}
        self._producer: dict[int, str] = {}
        self._consumers: dict[str, set[str]] = {}
        self._whole: dict[int, str] = {}  # the only tensor that a site returned -> its path
        self._makers: dict[str, dict[str, str | None]] = {}
        self._sources: dict[str, dict[str, None]] = {}
        self._made_of: dict[int, tuple[int, str]] = {}  # tensor -> number and path of the latest site whose output is in it
        self._keep: list[Any] = []  # tensors must outlive the recording, or their ids would be reused

    def hook(self, path: str, slot: Slot) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            bound = slot.op.signature.bind(*args, **kwargs).arguments
            specs = {name: _spec(value) for name, value in bound.items()}
            makers = self._makers.setdefault(path, {})
            for name, value in bound.items():
                if isinstance(value, Tensor) and id(value) in self._producer:
                    self._consumers[self._producer[id(value)]].add(path)
                maker = self._whole.get(id(value))
                makers[name] = maker if makers.get(name, maker) == maker else None
            noted = Call(slot.op.name, path, slot.role, specs)
            seen = self.calls.setdefault(path, [])
            if noted not in seen:
                seen.append(noted)
            latest = [self._made_of[id(tensor)][1] for tensor in _tensors(list(bound.values())) if id(tensor) in self._made_of]
            self._sources.setdefault(path, {}).update(dict.fromkeys(latest))
            output = self._run(slot, noted, args, kwargs)
            self._consumers.setdefault(path, set())
            for tensor in _tensors(output):
                self._producer[id(tensor)] = path
                self._made_of[id(tensor)] = len(self._keep), path
            if isinstance(output, Tensor):
                self._whole[id(output)] = path
            self._keep.append(output)
            return output

        return call

    def _run(self, slot: Slot, call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        key = (call.op, repr(sorted(call.args.items(), key=lambda item: item[0])))
        self._inside = True
        try:
            if key not in self._outputs:
                self._outputs[key] = slot.op.reference(*args, **kwargs)
            return _fresh(self._outputs[key])
        finally:
            self._inside = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._inside and getattr(func, "__name__", "") not in _LOOKS:
            for value in (*args, *(kwargs or {}).values()):
                for tensor in _tensors(value):
                    if id(tensor) in self._producer:
                        self._consumers[self._producer[id(tensor)]].add(ELSEWHERE)
        output = func(*args, **(kwargs or {}))
        if not self._inside:
            read = _tensors([*args, *(kwargs or {}).values()])
            latest = max((self._made_of[id(tensor)] for tensor in read if id(tensor) in self._made_of), default=None)
            for tensor in _tensors(output) if latest else ():
                self._made_of[id(tensor)] = latest  # type: ignore[assignment]
                self._keep.append(tensor)
        return output

    def sites(self) -> list[list[Call]]:
        """Per call site, its distinct calls, with the sites that read its output."""
        found = []
        for path, calls in self.calls.items():
            makers = {name: maker for name, maker in self._makers[path].items() if maker is not None}
            consumers, sources = tuple(sorted(self._consumers[path])), tuple(self._sources[path])
            found.append([replace(call, consumers=consumers, sources=sources, makers=makers) for call in calls])
        return found


def record(model: nn.Module, run: Callable[[], Any], prefix: str) -> list[list[Call]]:
    """Call sites that `run()` reaches in `model` (which lies on meta), in call order; paths get `prefix/`."""
    recorder = Recorder()
    found = slots(model)
    for path, slot in found.items():
        slot.fn = recorder.hook(f"{prefix}/{path}", slot)
    try:
        with torch.no_grad(), recorder:
            run()
    finally:
        for slot in found.values():
            slot.fn = slot.op.reference
    return recorder.sites()


def _spec(value: Any) -> Any:
    """What the planner sees of an argument: shapes and dtypes for tensors, everything else as it is."""
    if isinstance(value, QTensor):
        return TensorSpec(tuple(value.shape), value.scheme)
    if isinstance(value, Tensor):
        return TensorSpec(tuple(value.shape), str(value.dtype).removeprefix("torch."))
    return value


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    return [tensor for part in output for tensor in _tensors(part)] if isinstance(output, (tuple, list)) else []


def _fresh(output: Any) -> Any:
    """A new meta tensor per call, so that producers can be told apart by identity."""
    if isinstance(output, Tensor):
        return torch.empty_like(output)
    return tuple(_fresh(part) for part in output) if isinstance(output, (tuple, list)) else output
