"""The Triton kernels with the types and tiles that turbort launches them with, and tiles that no chip has room for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from turbort_ascend.lowering import Source

MATMUL = Source(
    "int8_block_matmul",
    {
        "a": "*i8", "b": "*i8", "row_scales": "*fp32", "col_scales": "*fp32", "out": "*bf16", "M": "i32", "N": "i32", "K": "i32",
    },
    {"TILE_M": 128, "TILE_N": 128, "TILE_K": 128},
)  # fmt: skip
DENSE = Source(
    "int8_attention",
    {
        "q": "*i8", "k": "*i8", "v": "*bf16", "q_scales": "*fp32", "k_scales": "*fp32", "out": "*bf16",
        "LQ": "i32", "LK": "i32", "scale": "fp32",
    },
    {"D": 128, "TILE_Q": 128, "TILE_K": 64},
)  # fmt: skip
SPARSE = Source(
    "int8_sparse_attention",
    {
        "q": "*i8", "k": "*i8", "v": "*bf16", "q_scales": "*fp32", "k_scales": "*fp32", "chosen": "*i32", "out": "*bf16",
        "LQ": "i32", "LK": "i32", "CHOSEN": "i32", "scale": "fp32",
    },
    {"D": 128, "TILE_Q": 64, "TILE_K": 128},
)  # fmt: skip


def with_dtype(source: Source, dtype: str) -> Source:
    """The same kernel for another 16-bit type."""
    return replace(source, types={name: f"*{dtype}" if kind == "*bf16" else kind for name, kind in source.types.items()})


def with_tiles(source: Source, **tiles: int) -> Source:
    """The same kernel with other constants."""
    return replace(source, constants={**source.constants, **tiles})


LAUNCHED: Mapping[str, Source] = {
    "matmul-bf16": MATMUL,
    "matmul-fp16": with_dtype(MATMUL, "fp16"),
    "attention-bf16": DENSE,
    "attention-fp16": with_dtype(DENSE, "fp16"),
    "attention-d64": with_tiles(DENSE, D=64),
    "sla-bf16": SPARSE,
    "sla-fp16": with_dtype(SPARSE, "fp16"),
    "sla-128x64": with_tiles(SPARSE, TILE_Q=128, TILE_K=64),
}
TOO_LARGE: Mapping[str, Source] = {
    "matmul-512": with_tiles(MATMUL, TILE_M=512, TILE_N=512),
    "attention-512": with_tiles(DENSE, TILE_Q=512, TILE_K=512),
}
