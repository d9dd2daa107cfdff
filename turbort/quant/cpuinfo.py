"""What this CPU can compute fast, as torch reports it."""

from __future__ import annotations

from functools import cache

import torch


def _any(*names: str) -> bool:
    """True when one of torch.cpu's private capability probes says yes (their names changed across versions)."""
    return any(bool(getattr(torch.cpu, name)()) for name in names if hasattr(torch.cpu, name))


@cache
def has_vnni() -> bool:
    """int8 dot products with 32-bit accumulation; without them oneDNN may saturate 16-bit partial sums."""
    return _any("_is_vnni_supported", "_is_avx512_vnni_supported") and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


@cache
def has_bf16() -> bool:
    """Hardware bfloat16 dot products (avx512_bf16)."""
    return _any("_is_avx512_bf16_supported") and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
