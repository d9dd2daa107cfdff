"""Writes a safetensors file tensor by tensor, in any order, from headers that are known beforehand."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from turbort.checkpoints.safetensors_file import DTYPES
from turbort.checkpoints.source import Header
from turbort.io.atomic import Sink

NAMES = {dtype: name for name, dtype in DTYPES.items()}


class SafetensorsWriter:
    """Puts the header into `sink` at once; `write` fills in the tensors, each exactly once, and `missing` names the rest.

    Wider dtypes come first, so that every tensor is aligned for its dtype.
    """

    def __init__(self, sink: Sink, headers: Mapping[str, Header], metadata: Mapping[str, str]) -> None:
        self.sink = sink
        self.headers = dict(headers)
        self.missing = set(headers)
        order = sorted(headers, key=lambda name: -headers[name].dtype.itemsize)
        table: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        self._start: dict[str, int] = {}
        at = 0
        for name in order:
            length = size_of(headers[name])
            table[name] = {
                "dtype": NAMES[headers[name].dtype],
                "shape": list(headers[name].shape),
                "data_offsets": [at, at + length],
            }
            self._start[name] = at
            at += length
        text = json.dumps(table, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._data = 8 + len(text)
        self.size = self._data + at
        sink.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, value: Tensor) -> None:
        """The values of one tensor; its shape and dtype must be those announced."""
        header = self.headers[name]
        if tuple(value.shape) != header.shape or value.dtype is not header.dtype:
            raise ValueError(f"{name} is {value.dtype} {list(value.shape)}, announced was {header.dtype} {list(header.shape)}")
        self.missing.remove(name)
        self.sink.seek(self._data + self._start[name])
        if value.numel():
            self.sink.write(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def size_of(header: Header) -> int:
    """Bytes of a tensor."""
    return torch.Size(header.shape).numel() * header.dtype.itemsize
