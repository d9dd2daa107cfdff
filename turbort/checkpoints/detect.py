"""Which dialect a file is in, from its names, dtypes and metadata alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from turbort.checkpoints import diffusers, lightx2v, turbodiffusion, umt5, wan
from turbort.checkpoints.dialect import Dialect, Headers, Naming, Storage
from turbort.errors import CheckpointError

# The first that matches is taken; the last of each matches everything.
STORAGES: tuple[Storage, ...] = (
    turbodiffusion.QUANTISED,
    lightx2v.INT8,
    lightx2v.FP8,
    turbodiffusion.UNQUANTISED,
    wan.PLAIN,
)
NAMINGS: tuple[Naming, ...] = (diffusers.DIT_NAMES, diffusers.VAE_NAMES, umt5.NATIVE, umt5.HF, wan.WAN)

REFUSED: Mapping[str, str] = {
    ".weight_global_scale": "LightX2V's nvfp4",
    ".weight_scale_2": "ModelOpt's nvfp4",
    ".comfy_quant": "ComfyUI's quantised",
    ".scale_weight": "ComfyUI's scaled fp8",
    "scaled_fp8": "ComfyUI's scaled fp8",
    ".weight_packed": "compressed-tensors' packed",
    ".weight_offset": "msmodelslim's",
    ".lora_down.weight": "a LoRA's",
    ".lora_A.weight": "a LoRA's",
}
"""Marks of dialects that are recognised so that they can be refused by name rather than with a list of odd tensors."""


def detect(headers: Headers, metadata: Mapping[str, str] | None = None, *, path: str | Path = "the file") -> Dialect:
    """The dialect of tensors under these names (without prefixes) and dtypes.

    Raises CheckpointError for a dialect that turbort knows but does not read.
    """
    found = next((mark for mark in REFUSED if any(name.endswith(mark) for name in headers)), None)
    kind = REFUSED[found] if found else None
    if kind is None and "_quantization_metadata" in (metadata or {}):
        found, kind = "_quantization_metadata", "ComfyUI's quantised"
    if kind is not None:
        raise CheckpointError(
            f"{path} is in {kind} form (it has {found}), which turbort does not read",
            fix="use a file of the model as published by Wan, TurboDiffusion, LightX2V (int8, fp8) or diffusers",
        )
    storage = next(row for row in STORAGES if row.matches(headers))
    return Dialect(storage, naming_of(headers))


def naming_of(names: Collection[str]) -> Naming:
    """The naming that a set of names follows."""
    return next(row for row in NAMINGS if row.matches(names))
