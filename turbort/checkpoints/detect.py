"""Which dialect a file is in, from its names, dtypes and metadata alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from turbort.checkpoints import bsq_file, comfy, compressed, diffusers, gguf, int4, lightx2v, modelslim, turbodiffusion, umt5, wan
from turbort.checkpoints.dialect import Dialect, Headers, Naming, Storage
from turbort.errors import CheckpointError

# The first that matches is taken; the last of each matches everything.
STORAGES: tuple[Storage, ...] = (
    bsq_file.BSQ,
    turbodiffusion.QUANTISED,
    modelslim.MODELSLIM,
    compressed.COMPRESSED,
    comfy.COMFY,
    gguf.GGUF,
    int4.INT4,
    lightx2v.INT8,
    lightx2v.FP8,
    turbodiffusion.UNQUANTISED,
    wan.PLAIN,
)
NAMINGS: tuple[Naming, ...] = (diffusers.DIT_NAMES, diffusers.VAE_NAMES, umt5.NATIVE, umt5.HF, wan.WAN)

REFUSED: Mapping[str, str] = {
    ".weight_global_scale": "LightX2V's nvfp4",
    ".weight_scale_2": "an nvfp4",
    ".lora_down.weight": "a LoRA's",
    ".lora_A.weight": "a LoRA's",
}
"""Marks of dialects that are recognised so that they can be refused by name rather than with a list of odd tensors."""


def detect(headers: Headers, metadata: Mapping[str, str] | None = None, *, path: str | Path = "the file") -> Dialect:
    """The dialect of tensors under these names (without prefixes) and dtypes.

    Raises CheckpointError for a dialect that turbort knows but does not read.
    """
    found = next((mark for mark in REFUSED if any(name.endswith(mark) for name in headers)), None)
    if found is not None:
        lora = "lora" in found
        raise CheckpointError(
            f"{path} is in {REFUSED[found]} form (it has {found}), which {'is no model' if lora else 'turbort does not read'}",
            fix="name the model as the weights, and add this file with --lora"
            if lora
            else "use a file of the model in bf16, int8 or fp8; `turbort quantize` makes one",
        )
    storage = next(row for row in STORAGES if row.matches(headers, metadata or {}))
    return Dialect(storage, naming_of(headers))


def naming_of(names: Collection[str]) -> Naming:
    """The naming that a set of names follows."""
    return next(row for row in NAMINGS if row.matches(names))
