"""LightX2V's quantised files, in which turbort's own tiny model is stored too: one scale per output channel.

A quantised linear has
    <linear>.weight        int8 or float8_e4m3fn  [out, in]
    <linear>.weight_scale  float                  [out, 1] (or [out])
with W = weight * weight_scale. Both are kept bit for bit.
"""

from __future__ import annotations

import torch

from turbort.checkpoints.dialect import Entry, Headers, Metadata, Storage, plain_entry, quantised_entry
from turbort.checkpoints.source import Source, refuse

SCALE = ".weight_scale"
SCHEMES = {torch.int8: "int8-channel", torch.float8_e4m3fn: "fp8-channel"}


def _linears(headers: Headers) -> list[str]:
    return [name.removesuffix(SCALE) for name in headers if name.endswith(SCALE)]


def _holds(dtype: torch.dtype, headers: Headers) -> bool:
    weights = (headers.get(f"{linear}.weight") for linear in _linears(headers))
    return any(weight is not None and weight.dtype is dtype for weight in weights)


def _has_int8(headers: Headers, _: Metadata) -> bool:
    return _holds(torch.int8, headers)


def _has_fp8(headers: Headers, _: Metadata) -> bool:
    return _holds(torch.float8_e4m3fn, headers)


def _entries(source: Source) -> dict[str, Entry]:
    headers = source.headers
    linears = _linears(headers)
    problems = [problem for linear in linears if (problem := _problem(headers, linear))]
    refuse(source.path, "quantised linears that are not complete", problems)
    entries: dict[str, Entry] = {}
    for linear in linears:
        weight, scales = f"{linear}.weight", linear + SCALE
        header = headers[weight]
        shape = (header.shape[0], 1)
        entries[weight] = quantised_entry(source, SCHEMES[header.dtype], weight, scales, shape, f"{linear}.bias")
    used = {name for entry in entries.values() for name in entry.sources}
    entries.update((name, plain_entry(source, name)) for name in headers if name not in used)
    return entries


def _problem(headers: Headers, linear: str) -> str | None:
    weight, scale = headers.get(f"{linear}.weight"), headers[linear + SCALE]
    if weight is None:
        return f"{linear}.weight is missing"
    if weight.dtype not in SCHEMES or len(weight.shape) != 2:
        return f"{linear}.weight is {weight.dtype} {list(weight.shape)}, not an int8 or float8_e4m3fn matrix"
    rows = weight.shape[0]
    if scale.shape not in ((rows, 1), (rows,)) or not scale.dtype.is_floating_point:
        return f"{linear}{SCALE} is {scale.dtype} {list(scale.shape)}, not float [{rows}, 1]"
    return None


INT8 = Storage("lightx2v-int8", _has_int8, _entries)
FP8 = Storage("lightx2v-fp8", _has_fp8, _entries)
