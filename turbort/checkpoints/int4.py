"""turbort's own int4 files: two codes per byte, one scale per output row and 128 inputs.

<linear>.weight        uint8  [out, in / 2], the even input in the low nibble, value in [-8, 7] as two's complement
<linear>.weight_scale  float  [out, ceil(in / 128)]
"""

from __future__ import annotations

import torch

from turbort.checkpoints.dialect import Entry, Headers, Metadata, Storage, plain_entry, stands_for_dtype
from turbort.checkpoints.source import Source, refuse, unreadable
from turbort.quant.int4 import GROUP, unpack_nibbles
from turbort.quant.qtensor import QTensor

SCALE = ".weight_scale"


def _linears(headers: Headers) -> list[str]:
    return [name.removesuffix(SCALE) for name in headers if name.endswith(SCALE)]


def _matches(headers: Headers, _: Metadata) -> bool:
    # Most of them: one byte tensor among int8 ones is a fault of that file, which its own dialect names.
    kinds = [weight.dtype for linear in _linears(headers) if (weight := headers.get(f"{linear}.weight")) is not None]
    return 2 * kinds.count(torch.uint8) > len(kinds)


def _entries(source: Source) -> dict[str, Entry]:
    headers = source.headers
    problems = [line for linear in _linears(headers) if (line := _problem(headers, linear))]
    refuse(source.path, "quantised linears that are not complete", problems)
    entries = {f"{linear}.weight": _entry(source, linear) for linear in _linears(headers)}
    used = {name for entry in entries.values() for name in entry.sources}
    return entries | {name: plain_entry(source, name) for name in headers if name not in used}


def _problem(headers: Headers, linear: str) -> str | None:
    weight, scale = headers.get(f"{linear}.weight"), headers[linear + SCALE]
    if weight is None or weight.dtype is not torch.uint8 or len(weight.shape) != 2:
        return f"{linear}.weight is {'missing' if weight is None else f'{weight.dtype} {list(weight.shape)}, not a uint8 matrix'}"
    wanted = (weight.shape[0], -(-2 * weight.shape[1] // GROUP))
    if scale.shape != wanted or not scale.dtype.is_floating_point:
        return f"{linear}{SCALE} is {scale.dtype} {list(scale.shape)}, not float {list(wanted)}"
    return None


def _entry(source: Source, linear: str) -> Entry:
    weight, scale = f"{linear}.weight", linear + SCALE
    rows, half = source.headers[weight].shape
    dtype = stands_for_dtype(source.headers, f"{linear}.bias")

    def read() -> QTensor:
        scales = source.load(scale).to(torch.float32)
        if not bool(scales.isfinite().all()):
            raise unreadable(source.path, f"the scales {scale} are not all finite numbers")
        return QTensor("int4-group128", unpack_nibbles(source.load(weight), 2 * half), scales, dtype)

    return Entry((rows, 2 * half), dtype, read, (weight, scale), "int4-group128", stored="int4-group128")


INT4 = Storage("turbort-int4", _matches, _entries)
