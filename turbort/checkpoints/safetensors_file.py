"""One `.safetensors` file: header first, tensors as views of the mapped file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from turbort.checkpoints.source import Header, Source, unreadable

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_safetensors(path: Path) -> Source:
    """The tensors of a safetensors file. Raises CheckpointError for a damaged file or a dtype torch cannot hold."""
    from safetensors import SafetensorError, safe_open

    try:
        file: Any = safe_open(str(path), framework="pt", device="cpu")
        headers = {name: _header(path, name, file.get_slice(name)) for name in file.keys()}  # noqa: SIM118 - not a mapping
        metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise unreadable(path, error) from error

    def load(name: str) -> Tensor:
        try:
            tensor: Tensor = file.get_tensor(name)
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise unreadable(path, f"{name}: {error}") from error
        return tensor

    return Source(path, headers, load, (path,), metadata)


def _header(path: Path, name: str, view: Any) -> Header:
    dtype = view.get_dtype()
    if dtype not in DTYPES:
        raise unreadable(
            path,
            f"tensor {name} is stored as {dtype}; turbort reads {', '.join(DTYPES)}",
            fix="use a file of the model in bf16, int8 or fp8",
        )
    return Header(tuple(view.get_shape()), DTYPES[dtype])
