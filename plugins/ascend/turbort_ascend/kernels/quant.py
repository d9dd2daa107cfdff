"""Quantised activations: int8 tokens from `npu_dynamic_quant`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from turbort.errors import InputError
from turbort.quant.qtensor import QTensor

npu: Any = torch.ops.npu


def tokens(x: Tensor) -> QTensor:
    """`x` [..., K] in scheme `int8-token`: codes round(x / s), s = max |row| / 127.

    `npu_dynamic_quant` sets no floor under s, so a row of zeros depends on the device's 0 / 0; the reference's floor
    of 1e-8 / 127 is put back on the scale, and the codes of such a row are multiplied by it.
    """
    values, scales = npu.npu_dynamic_quant(x.contiguous())
    return floored(values, scales, x.dtype)


def floored(values: Tensor, scales: Tensor, dtype: torch.dtype) -> QTensor:
    """int8 [..., K] and one scale per row [...] as a QTensor whose scales have the reference's floor."""
    return QTensor("int8-token", values, scales.clamp_min(1e-8 / 127).unsqueeze(-1), dtype)


def emitted(y: Tensor, emit: str | None) -> Tensor | QTensor:
    """`y` itself, or as int8 tokens; InputError for any other scheme."""
    if emit is None:
        return y
    if emit != "int8-token":
        raise InputError(f"ascend kernels hand over int8-token, not {emit}")
    return tokens(y)


def gelu_quant(x: Tensor, *, emit: str | None = None) -> Tensor | QTensor:
    """GELU (tanh form) in x's dtype, then int8 tokens if asked. x [..., D]."""
    return emitted(F.gelu(x, approximate="tanh"), emit)


def quantize(x: Tensor, *, emit: str) -> Tensor | QTensor:
    """`x` as int8 tokens."""
    return emitted(x, emit)
