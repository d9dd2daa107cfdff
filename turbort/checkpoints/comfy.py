"""ComfyUI's quantised files, of both generations.

Older files have a marker tensor `scaled_fp8`, and per linear
    <linear>.weight        float8_e4m3fn or float8_e5m2  [out, in]
    <linear>.scale_weight  float, one value              W = weight * scale_weight
    <linear>.scale_input   float, one value              not used: turbort scales activations per token
Newer files describe each linear in JSON, as the bytes of a uint8 tensor `<linear>.comfy_quant` or in the file's metadata
under `_quantization_metadata` ({"layers": {linear: {"format": ...}}}), and name the scale `weight_scale`:
    float8_e4m3fn, float8_e5m2, int8_tensorwise    scale [], [1] or [out, 1]
An int8 weight with `convrot` was multiplied by a Hadamard matrix per group of inputs before it was rounded; it is turned
back, because the rotation of activations that it was made for is no op of the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from turbort.checkpoints.dialect import Entry, Headers, Metadata, Storage, plain_entry, stands_for_dtype
from turbort.checkpoints.prefixes import strip_prefixes
from turbort.checkpoints.scaled import scale_problem, scaled_entry, scales_of
from turbort.checkpoints.source import Source, refuse, unreadable

MARKER, OLD_SCALE, NEW_SCALE, CONFIG = "scaled_fp8", ".scale_weight", ".weight_scale", ".comfy_quant"
UNUSED = (".scale_input", ".input_scale")
METADATA = "_quantization_metadata"
DTYPES = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2, "int8_tensorwise": torch.int8}
KNOWN = {"format", "full_precision_matrix_mult", "convrot", "convrot_groupsize"}
MAX_CONFIG = 4096


def _matches(headers: Headers, metadata: Metadata) -> bool:
    return MARKER in headers or METADATA in metadata or any(name.endswith((CONFIG, OLD_SCALE)) for name in headers)


def _entries(source: Source) -> dict[str, Entry]:
    headers = source.headers
    layers = _described(source)
    unknown = [line for row in layers.items() if (line := _unknown(*row))]
    refuse(source.path, "linears in forms that turbort does not read", unknown)
    old = [name.removesuffix(OLD_SCALE) for name in headers if name.endswith(OLD_SCALE)]
    scales = {linear: linear + OLD_SCALE for linear in old} | {linear: linear + NEW_SCALE for linear in layers}
    problems = [line for linear, scale in scales.items() if (line := scale_problem(headers, f"{linear}.weight", scale))]
    problems += [line for linear, config in layers.items() if (line := _disagrees(headers, linear, config))]
    orphans = [f"{name} has no {CONFIG}" for name in headers if name.endswith(NEW_SCALE) and name not in scales.values()]
    refuse(source.path, "quantised linears that are not complete", problems + orphans)
    entries = {f"{linear}.weight": _entry(source, linear, scale, layers.get(linear, {})) for linear, scale in scales.items()}
    used = {name for entry in entries.values() for name in entry.sources} | {MARKER}
    rest = (name for name in headers if name not in used and not name.endswith((CONFIG, *UNUSED)))
    return entries | {name: plain_entry(source, name) for name in rest}


def _described(source: Source) -> dict[str, Mapping[str, Any]]:
    """What the file says of each linear, from its metadata and its `comfy_quant` tensors."""
    layers: dict[str, Mapping[str, Any]] = {}
    if METADATA in source.metadata:
        found = _parse(source, METADATA, source.metadata[METADATA]).get("layers", {})
        if not isinstance(found, dict) or not all(isinstance(config, dict) for config in found.values()):
            raise unreadable(source.path, f"{METADATA} does not map layers to their formats")
        names = strip_prefixes(found)
        layers.update({names[name]: config for name, config in found.items()})
    for name, header in source.headers.items():
        if name.endswith(CONFIG):
            if header.dtype is not torch.uint8 or len(header.shape) != 1 or header.shape[0] > MAX_CONFIG:
                found = f"{header.dtype} {list(header.shape)}"
                raise unreadable(source.path, f"{name} is {found}, not a text of at most {MAX_CONFIG} bytes")
            layers[name.removesuffix(CONFIG)] = _parse(source, name, bytes(source.load(name).tolist()))
    return layers


def _parse(source: Source, name: str, text: str | bytes) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise unreadable(source.path, f"{name} is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise unreadable(source.path, f"{name} is not a JSON object")
    return config


def _unknown(linear: str, config: Mapping[str, Any]) -> str | None:
    name = config.get("format")
    if name not in DTYPES:
        return f"{linear} is in format {name!r}; turbort reads {', '.join(DTYPES)}"
    odd = sorted(set(config) - KNOWN)
    size = config.get("convrot_groupsize", 256)
    if config.get("convrot") and (size not in (4, 16, 64, 256, 1024) or name != "int8_tensorwise"):
        return f"{linear} is rotated in groups of {size!r} as {name}"
    return f"{linear} has settings that turbort does not know: {', '.join(odd)}" if odd else None


def _disagrees(headers: Headers, linear: str, config: Mapping[str, Any]) -> str | None:
    header = headers.get(f"{linear}.weight")
    wanted = DTYPES[config["format"]]
    if header is not None and header.dtype is not wanted:
        return f"{linear}.weight is {header.dtype}, its format {config['format']} says {wanted}"
    size = config.get("convrot_groupsize", 256)
    if header is not None and config.get("convrot") and header.shape[-1] % size:
        return f"{linear}.weight has {header.shape[-1]} inputs, which groups of {size} do not divide"
    return None


def _entry(source: Source, linear: str, scale: str, config: Mapping[str, Any]) -> Entry:
    weight, bias = f"{linear}.weight", f"{linear}.bias"
    if not config.get("convrot"):
        return scaled_entry(source, weight, scale, bias)
    shape, dtype = source.headers[weight].shape, stands_for_dtype(source.headers, bias)

    def read() -> Tensor:
        rotated = source.load(weight).to(torch.float32) * scales_of(source, scale, shape[0])
        turn = hadamard(int(config.get("convrot_groupsize", 256)))
        return (rotated.view(shape[0], -1, len(turn)) @ turn).view(shape).to(dtype)

    return Entry(shape, dtype, read, (weight, scale), stored="int8-convrot")


def hadamard(size: int) -> Tensor:
    """The symmetric orthogonal matrix [size, size] of ConvRot, its own inverse; `size` is a power of 4.

    Kronecker powers of the 4x4 matrix that is 1 but for -1 on its anti-diagonal, over sqrt(size).
    """
    seed = 1.0 - 2.0 * torch.eye(4).flip(0)
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.kron(matrix, seed)
    normalised: Tensor = matrix / float(size) ** 0.5
    return normalised


COMFY = Storage("comfy", _matches, _entries)
