"""One `.gguf` file, versions 2 and 3, little-endian: header first, tensors mapped and widened when asked for.

Blocks of 32 values, d and m float16:
    Q8_0   d, int8[32]                               x = d q
    Q4_0   d, nibbles[16]                            x = d (q - 8)       low nibbles are the first 16 values
    Q4_1   d, m, nibbles[16]                         x = d q + m
    Q5_0   d, fifth bits[4], nibbles[16]             x = d (q - 16)
    Q5_1   d, m, fifth bits[4], nibbles[16]          x = d q + m
Axes are stored in reverse. ComfyUI-GGUF flattens some tensors and keeps their shape under `comfy.gguf.orig_shape.<name>`.
Source: the GGUF specification (github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from turbort.checkpoints.source import Header, Source, unreadable

ARCHITECTURE = "general.architecture"
ORIGINAL = "comfy.gguf.orig_shape."
BLOCK = 32
LIMIT = 1_000_000
"""Most tensors, values or array items that a header may claim."""

Bytes = NDArray[np.uint8]


def _half(raw: Bytes) -> NDArray[np.float32]:
    return np.ascontiguousarray(raw).view("<f2").astype(np.float32)


def _nibbles(raw: Bytes) -> NDArray[np.float32]:
    return np.concatenate([raw & 0xF, raw >> 4], axis=1).astype(np.float32)


def _fifth(raw: Bytes) -> NDArray[np.float32]:
    bits = np.unpackbits(np.ascontiguousarray(raw), axis=1, bitorder="little")
    return bits.astype(np.float32) * 16.0


Widen = Callable[[Bytes], NDArray[np.float32]]
QUANTISED: Mapping[int, tuple[str, int, Widen]] = {
    2: ("Q4_0", 18, lambda b: _half(b[:, :2]) * (_nibbles(b[:, 2:]) - 8)),
    3: ("Q4_1", 20, lambda b: _half(b[:, :2]) * _nibbles(b[:, 4:]) + _half(b[:, 2:4])),
    6: ("Q5_0", 22, lambda b: _half(b[:, :2]) * (_nibbles(b[:, 6:]) + _fifth(b[:, 2:6]) - 16)),
    7: ("Q5_1", 24, lambda b: _half(b[:, :2]) * (_nibbles(b[:, 8:]) + _fifth(b[:, 4:8])) + _half(b[:, 2:4])),
    8: ("Q8_0", 34, lambda b: _half(b[:, :2]) * np.ascontiguousarray(b[:, 2:]).view(np.int8).astype(np.float32)),
}
PLAIN: Mapping[int, tuple[str, int, torch.dtype]] = {
    0: ("F32", 4, torch.float32),
    1: ("F16", 2, torch.float16),
    30: ("BF16", 2, torch.bfloat16),
}
OTHER = {10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 20: "IQ4_NL", 23: "IQ4_XS"}
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies: its GGML type, offset in the file and length in bytes."""

    kind: int
    offset: int
    length: int
    shape: tuple[int, ...]


class Reader:
    """Reads little-endian values from a mapped file, refusing to run past its end."""

    def __init__(self, path: Path, data: Bytes) -> None:
        self.path, self.data, self.at = path, data, 0

    def take(self, count: int) -> bytes:
        if not 0 <= count <= len(self.data) - self.at:
            raise unreadable(self.path, f"the header claims {count} bytes at {self.at} of {len(self.data)}")
        self.at += count
        return self.data[self.at - count : self.at].tobytes()

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def count(self, what: str) -> int:
        found = int(self.number("Q"))
        if found > LIMIT:
            raise unreadable(self.path, f"the header claims {found} {what}")
        return found

    def text(self) -> str:
        return self.take(self.count("bytes of text")).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _TEXT:
            return self.text()
        if kind == _ARRAY:
            inner, count = int(self.number("I")), self.count("array items")
            if inner == _ARRAY:
                raise unreadable(self.path, "the header nests arrays")
            return [self.value(inner) for _ in range(count)]
        raise unreadable(self.path, f"the header has a value of unknown type {kind}")


def read_gguf(path: Path) -> Source:
    """The tensors of a GGUF file. Raises CheckpointError for damage and for types that turbort does not read, by name."""
    data: Bytes = np.memmap(path, dtype=np.uint8, mode="r")
    reader = Reader(path, data)
    reader.take(4)
    version = reader.number("I")
    if version not in (2, 3):
        raise unreadable(path, f"it is GGUF version {version}; turbort reads 2 and 3", fix="convert the file again")
    tensors, values = reader.count("tensors"), reader.count("values")
    fields: dict[str, Any] = {}
    for _ in range(values):
        name = reader.text()
        fields[name] = reader.value(int(reader.number("I")))
    places = _places(reader, tensors, fields)
    headers = {name: _header(place) for name, place in places.items()}

    def load(name: str) -> Tensor:
        place = places[name]
        return _tensor(data[place.offset : place.offset + place.length], place)

    text = {name: value for name, value in fields.items() if isinstance(value, str)}
    return Source(path, headers, load, (path,), {ARCHITECTURE: "unknown", **text})


def _places(reader: Reader, count: int, fields: Mapping[str, Any]) -> dict[str, Place]:
    rows = []
    for _ in range(count):
        name, axes = reader.text(), int(reader.number("I"))
        if axes > 8:
            raise unreadable(reader.path, f"{name} has {axes} axes")
        shape = tuple(int(reader.number("Q")) for _ in range(axes))[::-1]
        rows.append((name, shape, int(reader.number("I")), int(reader.number("Q"))))
    align = fields.get("general.alignment", 32)
    if not isinstance(align, int) or not 1 <= align <= 2**20:
        raise unreadable(reader.path, f"the alignment is {align!r}")
    start = -(-reader.at // align) * align
    odd = [(OTHER.get(kind, f"type {kind}"), name) for name, _, kind, _ in rows if kind not in QUANTISED and kind not in PLAIN]
    if odd:
        known = ", ".join(row[0] for row in (*PLAIN.values(), *QUANTISED.values()))
        what = f"{len(odd)} of its tensors are in other forms than {known}, such as {odd[0][1]} in {odd[0][0]}"
        raise unreadable(reader.path, what, fix="use a Q8_0 file of the model")
    found: dict[str, Place] = {}
    for name, shape, kind, offset in rows:
        length, size = _length(reader.path, name, shape, kind), start + offset
        if name in found or not 0 <= size <= len(reader.data) - length:
            reason = "twice" if name in found else f"beyond the end of the file ({len(reader.data)} bytes)"
            raise unreadable(reader.path, f"tensor {name} is there {reason}")
        found[name] = Place(kind, size, length, _original(reader.path, name, shape, fields))
    return found


def _length(path: Path, name: str, shape: tuple[int, ...], kind: int) -> int:
    values = math.prod(shape)
    if kind in PLAIN:
        return values * PLAIN[kind][1]
    if not shape or shape[-1] % BLOCK:
        raise unreadable(path, f"tensor {name} {list(shape)} is no whole number of blocks of {BLOCK}")
    return values // BLOCK * QUANTISED[kind][1]


def _original(path: Path, name: str, shape: tuple[int, ...], fields: Mapping[str, Any]) -> tuple[int, ...]:
    wanted = fields.get(ORIGINAL + name)
    if wanted is None:
        return shape
    if not isinstance(wanted, list) or not all(isinstance(n, int) for n in wanted) or math.prod(wanted) != math.prod(shape):
        raise unreadable(path, f"{ORIGINAL}{name} is {wanted!r:.80}, the tensor has {list(shape)}")
    return tuple(wanted)


def _header(place: Place) -> Header:
    if place.kind in PLAIN:
        name, _, dtype = PLAIN[place.kind]
        return Header(place.shape, dtype, name)
    return Header(place.shape, torch.float32, QUANTISED[place.kind][0])


def _tensor(raw: Bytes, place: Place) -> Tensor:
    if place.kind in PLAIN:
        # A copy: torch does not accept the read-only memory of a mapped file.
        flat = torch.from_numpy(np.array(raw)).view(PLAIN[place.kind][2])
    else:
        _, size, widen = QUANTISED[place.kind]
        flat = torch.from_numpy(widen(raw.reshape(-1, size)))
    return flat.view(place.shape)
