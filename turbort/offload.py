"""Blocks that live on the host and visit the device: the next one is copied while the current one computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from turbort.models.wan_dit import WanDit


class Offload:
    """Hooks on the blocks of a transformer whose weights lie on the host.

    Everything but the blocks moves to `device` for good. On CUDA the host copies are pinned and travel on a stream of their
    own, so that the copy of block n + 1 hides behind block n; elsewhere copies are made when they are needed. At most two
    blocks are on the device. `most` counts the largest number seen.
    """

    def __init__(self, model: WanDit, device: torch.device) -> None:
        self.device = device
        self.most = 0
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._blocks = list(model.blocks)
        for name, module in model.named_modules():
            if not name.startswith("blocks."):
                _put(module, _leaves(module, device))
        self._host = [self._pinned(block) for block in self._blocks]
        self._here: dict[int, Any] = {}
        for index, block in enumerate(self._blocks):
            block.register_forward_pre_hook(lambda _m, _a, index=index: self._enter(index))
            block.register_forward_hook(lambda _m, _a, _o, index=index: self._leave(index))
            # The text's keys and values are made outside the block's forward.
            block.encode_text = self._visiting(index, block.encode_text)

    def _visiting(self, index: int, encode: Any) -> Any:
        def call(*args: Any) -> Any:
            self._enter(index)
            try:
                return encode(*args)
            finally:
                self._leave(index)

        return call

    def _pinned(self, block: nn.Module) -> list[dict[str, Any]]:
        rows = [_leaves(module, None) for module in block.modules()]
        if self._stream is None:
            return rows
        return [{name: move(value, None) for name, value in row.items()} for row in rows]

    def _fetch(self, index: int) -> None:
        if index in self._here or index >= len(self._blocks):
            return
        self.most = max(self.most, len(self._here) + 1)
        with torch.cuda.stream(self._stream) if self._stream is not None else nullcontext():
            self._here[index] = [{name: move(value, self.device) for name, value in row.items()} for row in self._host[index]]

    def _enter(self, index: int) -> None:
        self._fetch(index)
        if self._stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)
        for module, row in zip(self._blocks[index].modules(), self._here[index], strict=True):
            _put(module, row)
        if self._stream is not None:
            self._fetch(index + 1)

    def _leave(self, index: int) -> None:
        if self._stream is not None:
            # The memory must not be reused before the compute stream is done with it.
            for row in self._here[index]:
                for value in row.values():
                    for tensor in tensors(value):
                        tensor.record_stream(torch.cuda.current_stream(self.device))
        for module, row in zip(self._blocks[index].modules(), self._host[index], strict=True):
            _put(module, row)
        self._here.pop(index, None)


def _leaves(module: nn.Module, device: torch.device | None) -> dict[str, Any]:
    """The weights a module holds itself: parameters, and packed objects that took their place."""
    found: dict[str, Any] = {name: value for name, value in module._parameters.items() if value is not None}
    found |= {name: vars(module)[name] for name in ("weight",) if name in vars(module)}
    return found if device is None else {name: move(value, device) for name, value in found.items()}


def _put(module: nn.Module, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if name in module._parameters:
            whole = value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False)
            module._parameters[name] = whole
        else:
            vars(module)[name] = value


def move(value: Any, device: torch.device | None) -> Any:
    """A tensor, QTensor or packed dataclass on `device`; None pins it on the host."""
    if isinstance(value, Tensor):
        data = value.detach()
        return data.pin_memory() if device is None else data.to(device, non_blocking=True)
    if is_dataclass(value) and not isinstance(value, type):
        changes = {part.name: move(getattr(value, part.name), device) for part in fields(value) if part.init}
        return replace(value, **changes)
    if isinstance(value, (tuple, list)):
        return type(value)(move(part, device) for part in value)
    return value


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor inside a packed object."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value) and not isinstance(value, type):
        for part in fields(value):
            yield from tensors(getattr(value, part.name))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
