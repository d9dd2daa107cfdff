"""What a dialect is: how a file stores a tensor (plain or quantised) and how it names it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from turbort.checkpoints.source import Header, Source, unreadable
from turbort.quant.qtensor import QTensor

Value: TypeAlias = Tensor | QTensor
Headers: TypeAlias = Mapping[str, Header]
Metadata: TypeAlias = Mapping[str, str]

SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
BYTE_FLOATS = (torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True)
class Entry:
    """One weight of the model, not yet read.

    Attributes:
        shape: of the logical weight.
        dtype: what `read` returns, or the float dtype that a QTensor stands for.
        read: makes the value; a view of the mapped file where nothing had to be converted.
        sources: names of the stored tensors it is made from.
        scheme: the QTensor scheme, or None for a plain tensor.
        alias: whether this repeats another entry under a second name, so that nobody need ask for it.
        stored: how the file keeps the values (`bf16`, `int8-channel`, `Q4_0`), for people to read.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Value]
    sources: tuple[str, ...]
    scheme: str | None = None
    alias: bool = False
    stored: str = ""


@dataclass(frozen=True)
class Storage:
    """How values are stored: recognised by names, dtypes and metadata, turned into entries under the file's own names."""

    name: str
    matches: Callable[[Headers, Metadata], bool]
    entries: Callable[[Source], dict[str, Entry]]


@dataclass(frozen=True)
class Naming:
    """What weights are called: recognised by names, translated to those of turbort's models.

    `logical` maps every name of the file to the model's; `aliases` adds further names for a weight that is stored once.
    """

    name: str
    matches: Callable[[Collection[str]], bool]
    logical: Callable[[Collection[str]], Mapping[str, str]]
    aliases: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Dialect:
    """A storage and a naming; any pair occurs."""

    storage: Storage
    naming: Naming

    @property
    def name(self) -> str:
        """`turbodiffusion-quant`, `diffusers`, `umt5`, `lightx2v-int8 umt5`, ..."""
        parts = [part for part in (self.storage.name, self.naming.name) if part not in ("plain", "wan")]
        return " ".join(parts) or "wan"


def plain_entry(source: Source, name: str) -> Entry:
    """A tensor stored as it is.

    float64 is narrowed to float32, because no device path computes in it; 8-bit floats without a scale are values that were
    merely cast, so they are widened to bfloat16, which holds each of them exactly.
    """
    header = source.headers[name]
    dtype = header.dtype
    if dtype == torch.float64:
        dtype = torch.float32
    elif dtype in BYTE_FLOATS:
        dtype = torch.bfloat16
    stored = header.stored or SHORT.get(header.dtype, str(header.dtype).removeprefix("torch."))
    return Entry(header.shape, dtype, lambda: source.load(name).to(dtype), (name,), stored=stored)


def quantised_entry(source: Source, scheme: str, values: str, scales: str, scale_shape: tuple[int, ...], bias: str) -> Entry:
    """A QTensor of two stored tensors; it stands for the dtype of `bias` where that is stored, else for bfloat16."""
    header = source.headers[values]
    stands_for = stands_for_dtype(source.headers, bias)

    def read() -> QTensor:
        factors = source.load(scales).to(torch.float32).reshape(scale_shape)
        if not bool(factors.isfinite().all()):
            raise unreadable(source.path, f"the scales {scales} are not all finite numbers")
        return QTensor(scheme, source.load(values), factors, stands_for)

    return Entry(header.shape, stands_for, read, (values, scales), scheme, stored=scheme)


def stands_for_dtype(headers: Headers, bias: str) -> torch.dtype:
    """The float dtype of a quantised linear: that of its bias where one is stored, else bfloat16."""
    found = headers[bias].dtype if bias in headers else torch.bfloat16
    return found if found in SHORT else torch.bfloat16
