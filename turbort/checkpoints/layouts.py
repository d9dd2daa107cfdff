"""How each dialect that turbort writes stores a weight: names, shapes and dtypes before any value is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from turbort.checkpoints.compressed import pack_words
from turbort.checkpoints.roles import may_quantise
from turbort.checkpoints.source import Header
from turbort.errors import InputError, unknown
from turbort.precision import PRECISIONS
from turbort.quant.int4 import GROUP, pack_nibbles
from turbort.quant.qtensor import QTensor

WRITTEN = ("w8a8", "w8a8-block128", "fp8", "w4a8")
BLOCK = 128
PATCH = "patch_embedding.weight"
TURBO_FP32 = (".norm_q.", ".norm_k.", ".norm3.")
"""TurboDiffusion keeps the buffers of its fused norms in float32, everything else unquantised in bfloat16."""


@dataclass(frozen=True)
class Layout:
    """A dialect that can be written, for one precision.

    Attributes:
        quantised: headers of what a matrix becomes, by stored name.
        encode: the values that go with them.
        plain: stored name and header of any other weight.
        metadata: what goes into the header of a safetensors file.
    """

    dialect: str
    scheme: str
    quantised: Callable[[str, tuple[int, ...]], Mapping[str, Header]]
    encode: Callable[[str, QTensor], Mapping[str, Tensor]]
    plain: Callable[[str, tuple[int, ...], torch.dtype], Header]
    metadata: Mapping[str, str]

    def headers(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Mapping[str, Header]:
        """Everything that is stored for the weight `name`."""
        if may_quantise(name, shape):
            return self.quantised(name, shape)
        return {name: self.plain(name, shape, dtype)}


def layout(dialect: str, precision: str) -> Layout:
    """InputError for a dialect or precision that is not written, or a pair that does not exist."""
    if precision not in WRITTEN:
        raise unknown("precision", precision, WRITTEN)
    if dialect not in DIALECTS:
        raise unknown("dialect", dialect, DIALECTS)
    made = DIALECTS[dialect](precision)
    if made is None:
        fits = [name for name, maker in DIALECTS.items() if maker(precision) is not None]
        raise InputError(
            f"the dialect {dialect} has no form for {precision}", fix=f"use --dialect {' or '.join(fits)} for {precision}"
        )
    return made


def _kept(_: str, shape: tuple[int, ...], dtype: torch.dtype) -> Header:
    return Header(shape, dtype)


def _turbo_plain(name: str, shape: tuple[int, ...], _: torch.dtype) -> Header:
    wide = any(part in name for part in TURBO_FP32)
    flat = (shape[0], torch.Size(shape[1:]).numel()) if name == PATCH else shape
    return Header(flat, torch.float32 if wide else torch.bfloat16)


def _block_headers(name: str, shape: tuple[int, ...]) -> Mapping[str, Header]:
    linear = name.removesuffix(".weight")
    blocks = tuple(-(-size // BLOCK) for size in shape)
    return {f"{linear}.int8_weight": Header(shape, torch.int8), f"{linear}.scale": Header(blocks, torch.float32)}


def _block_values(name: str, q: QTensor) -> Mapping[str, Tensor]:
    linear = name.removesuffix(".weight")
    return {f"{linear}.int8_weight": q.values, f"{linear}.scale": q.scales}


def _turbodiffusion(precision: str) -> Layout | None:
    if precision != "w8a8-block128":
        return None
    return Layout("turbodiffusion", "int8-block128", _block_headers, _block_values, _turbo_plain, {})


def _row_headers(dtype: torch.dtype) -> Callable[[str, tuple[int, ...]], Mapping[str, Header]]:
    def headers(name: str, shape: tuple[int, ...]) -> Mapping[str, Header]:
        return {name: Header(shape, dtype), f"{name}_scale": Header((shape[0], 1), torch.float32)}

    return headers


def _row_values(name: str, q: QTensor) -> Mapping[str, Tensor]:
    return {name: q.values, f"{name}_scale": q.scales.reshape(-1, 1)}


def _nibble_headers(name: str, shape: tuple[int, ...]) -> Mapping[str, Header]:
    if shape[1] % 2:
        raise InputError(f"{name} has {shape[1]} inputs, and int4 codes are stored in pairs", fix="choose --precision w8a8")
    scales = Header((shape[0], -(-shape[1] // GROUP)), torch.float32)
    return {name: Header((shape[0], shape[1] // 2), torch.uint8), f"{name}_scale": scales}


def _nibble_values(name: str, q: QTensor) -> Mapping[str, Tensor]:
    return {name: pack_nibbles(q.values), f"{name}_scale": q.scales}


def _turbort(precision: str) -> Layout | None:
    scheme = PRECISIONS[precision].weight_scheme or ""
    note = {"turbort": json.dumps({"precision": precision})}
    if precision == "w8a8-block128":
        return Layout("turbort", scheme, _block_headers, _block_values, _kept, note)
    if precision == "w4a8":
        return Layout("turbort", scheme, _nibble_headers, _nibble_values, _kept, note)
    dtype = torch.int8 if precision == "w8a8" else torch.float8_e4m3fn
    return Layout("turbort", scheme, _row_headers(dtype), _row_values, _kept, note)


def _word_headers(name: str, shape: tuple[int, ...]) -> Mapping[str, Header]:
    return {
        f"{name}_packed": Header((shape[0], -(-shape[1] // 8)), torch.int32),
        f"{name}_scale": Header((shape[0], -(-shape[1] // GROUP)), torch.float32),
        f"{name}_shape": Header((2,), torch.int64),
    }


def _word_values(name: str, q: QTensor) -> Mapping[str, Tensor]:
    shape = torch.tensor(tuple(q.values.shape), dtype=torch.int64)
    return {f"{name}_packed": pack_words(q.values), f"{name}_scale": q.scales, f"{name}_shape": shape}


def _compressed(precision: str) -> Layout | None:
    formats = {"w8a8": "int-quantized", "fp8": "float-quantized", "w4a8": "pack-quantized"}
    if precision not in formats:
        return None
    kind = "float" if precision == "fp8" else "int"
    weights = {"num_bits": 4 if precision == "w4a8" else 8, "type": kind, "symmetric": True}
    weights |= {"strategy": "group", "group_size": GROUP} if precision == "w4a8" else {"strategy": "channel"}
    inputs = {"num_bits": 8, "type": kind, "symmetric": True, "strategy": "token", "dynamic": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    config = {"quant_method": "compressed-tensors", "format": formats[precision], "quantization_status": "compressed"}
    note = {"quantization_config": json.dumps({**config, "config_groups": {"group_0": group}, "ignore": []})}
    scheme = PRECISIONS[precision].weight_scheme or ""
    if precision == "w4a8":
        return Layout("compressed-tensors", scheme, _word_headers, _word_values, _kept, note)
    dtype = torch.int8 if precision == "w8a8" else torch.float8_e4m3fn
    return Layout("compressed-tensors", scheme, _row_headers(dtype), _row_values, _kept, note)


DIALECTS: Mapping[str, Callable[[str], Layout | None]] = {
    "turbort": _turbort,
    "turbodiffusion": _turbodiffusion,
    "compressed-tensors": _compressed,
}
