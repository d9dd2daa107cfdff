"""Two ops in one launch, where torch-npu has them: GELU with quantisation, a residual with its LayerNorm.

torch-npu 2.13.0 has schemas, Meta kernels and host code for these ops but no page, so no constraint of theirs can be quoted:
they are used only where `TURBORT_ASCEND_FUSED=1` asks for them. `npu_add_rms_norm_dynamic_quant` has a page and no use here:
Wan adds residuals before LayerNorms only, and its RMSNorms feed the rotation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from turbort.quant.qtensor import QTensor
from turbort_ascend.kernels import quant
from turbort_ascend.kernels.quant import emitted

npu: Any = torch.ops.npu


def gelu_quant(x: Tensor, *, emit: str | None = None) -> Tensor | QTensor:
    """GELU (tanh form) and int8 tokens in one pass over x [..., D], by `npu_gelu_quant`; a plain result is torch's own GELU."""
    if emit != "int8-token":
        return quant.gelu_quant(x, emit=emit)
    codes, scales = npu.npu_gelu_quant(x.contiguous(), approximate="tanh", quant_mode="dynamic", dst_type=1)
    return quant.floored(codes, scales, x.dtype)


def gated_residual_norm_modulate(
    x: Tensor, y: Tensor, gate: Tensor, scale: Tensor, shift: Tensor, *, eps: float = 1e-6, emit: str | None = None
) -> tuple[Tensor, Tensor | QTensor]:
    """(x + y * gate, norm_modulate of it) by `npu_add_layer_norm`, which also returns the sum; x [1, L, D].

    The op adds two tensors of one dtype, so y * gate is rounded to x's; 1 + scale and shift are its float32 gamma and beta.
    """
    branch = (y.to(torch.float32) * gate.to(torch.float32)).to(x.dtype)
    gain, offset = 1 + scale.reshape(-1).to(torch.float32), shift.reshape(-1).to(torch.float32)
    normed, _, _, total = npu.npu_add_layer_norm(x.contiguous(), branch, gain, offset, eps, True)
    return total, emitted(normed, emit)
