"""Weights with one scale for the whole matrix or one per row: what several dialects share."""

from __future__ import annotations

import torch
from torch import Tensor

from turbort.checkpoints.dialect import Entry, Headers, stands_for_dtype
from turbort.checkpoints.source import Source, unreadable
from turbort.quant.qtensor import QTensor

SCHEMES = {torch.int8: "int8-channel", torch.float8_e4m3fn: "fp8-channel"}
FLOATS = (torch.float8_e4m3fn, torch.float8_e5m2)


def scale_problem(headers: Headers, weight: str, scale: str) -> str | None:
    """What is wrong with a weight and its scale, or None: int8 or 8-bit float matrix, scale [1], [], [out] or [out, 1]."""
    values, factors = headers.get(weight), headers.get(scale)
    if values is None:
        return f"{weight} is missing"
    if factors is None:
        return f"{scale} is missing"
    if values.dtype not in (torch.int8, *FLOATS) or len(values.shape) != 2:
        return f"{weight} is {values.dtype} {list(values.shape)}, not an int8 or 8-bit float matrix"
    rows = values.shape[0]
    if factors.shape not in ((), (1,), (1, 1), (rows,), (rows, 1)) or not factors.dtype.is_floating_point:
        return f"{scale} is {factors.dtype} {list(factors.shape)}, not float [1] or [{rows}, 1]"
    return None


def scales_of(source: Source, name: str, rows: int) -> Tensor:
    """float32 scales [rows, 1], a single one repeated. Raises CheckpointError where they are not finite."""
    factors = source.load(name).to(torch.float32).reshape(-1, 1)
    if not bool(factors.isfinite().all()):
        raise unreadable(source.path, f"the scales {name} are not all finite numbers")
    return factors.expand(rows, 1).contiguous()


def scaled_entry(source: Source, weight: str, scale: str, bias: str, *, also: tuple[str, ...] = ()) -> Entry:
    """W = values * scale: a QTensor per output channel for int8 and e4m3, kept bit for bit; floats for e5m2.

    `also` names further stored tensors that belong to this weight.
    """
    header = source.headers[weight]
    rows = header.shape[0]
    dtype = stands_for_dtype(source.headers, bias)
    scheme = SCHEMES.get(header.dtype)
    sources = (weight, scale, *also)
    if scheme is None:

        def widened() -> Tensor:
            return (source.load(weight).to(torch.float32) * scales_of(source, scale, rows)).to(dtype)

        return Entry(header.shape, dtype, widened, sources, stored="e5m2")

    def read() -> QTensor:
        return QTensor(scheme, source.load(weight), scales_of(source, scale, rows), dtype)

    return Entry(header.shape, dtype, read, sources, scheme, stored=scheme)
