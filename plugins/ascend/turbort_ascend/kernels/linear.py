"""Linear layers: int8 tokens by int8 channels, and int4 groups by 16-bit or int8 activations."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from turbort.errors import InputError
from turbort.quant.qtensor import QTensor
from turbort_ascend.kernels.quant import tokens
from turbort_ascend.soc import family_of

npu: Any = torch.ops.npu
GROUP = 128
FRACTAL_NZ = 29
NZ = "TURBORT_ASCEND_NZ"
"""Set to 1 to keep int8 weights in the cube units' own layout (A2, A3). Off by default: nobody has timed it here."""


@dataclass(frozen=True)
class Int8Weight:
    """int8 [K, N] (a transposed view of the checkpoint's [N, K], or FRACTAL_NZ) and float32 scales [N]."""

    values: Tensor
    scales: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """[N, K], as the logical weight."""
        k, n = self.values.shape
        return n, k


@dataclass(frozen=True)
class Int4Weight:
    """Eight int4 along N in each int32 [K, N / 8], and scales [ceil(K / 128), N] in the activation's dtype."""

    values: Tensor
    scales: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """[N, K], as the logical weight."""
        return self.scales.shape[1], self.values.shape[0]


def pack_w8a8(weight: QTensor, bias: Tensor | None = None) -> Int8Weight:
    """From `int8-channel`: the transpose is a view, so packing copies nothing (unless NZ is asked for)."""
    values, scales = weight.values.t(), weight.scales.reshape(-1).to(torch.float32)
    return Int8Weight(fractal_nz(values.contiguous()) if _wants_nz(values) else values, scales)


def _wants_nz(values: Tensor) -> bool:
    """Whether NZ is asked for and the chip is one whose page recommends it: “推荐x2不转置直接转亲和format”."""
    if os.environ.get(NZ) != "1" or values.device.type != "npu":
        return False
    family = family_of(torch.npu.get_device_name(values.device))  # type: ignore[attr-defined]
    return family is not None and family.name in ("A2", "A3")


def fractal_nz(values: Tensor) -> Tensor:
    """`values` in FRACTAL_NZ. torch-npu keeps the plain layout, with a mere warning, unless internal formats are allowed."""
    import torch_npu  # type: ignore[import-not-found,unused-ignore]

    before = torch_npu._C._npu_getOption("ALLOW_INTERNAL_FORMAT")
    torch.npu.config.allow_internal_format = True  # type: ignore[attr-defined]
    try:
        made: Tensor = npu.npu_format_cast(values, FRACTAL_NZ)
    finally:
        torch.npu.config.allow_internal_format = before == b"enable"  # type: ignore[attr-defined]
    return made


def pack_int4(weight: QTensor, bias: Tensor | None = None) -> Int4Weight:
    """From `int4-group128`. Scales are kept in float32 here and take the activation's dtype at the call."""
    codes = weight.values.t().contiguous().to(torch.int32)
    return Int4Weight(npu.npu_convert_weight_to_int4pack(codes), weight.scales.t().contiguous())


def linear_w8a8(
    x: Tensor | QTensor, weight: Int8Weight, bias: Tensor | None = None, *,
    activation: str | None = None, residual: Tensor | None = None, gate: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`turbort.ops.linear` at w8a8: `npu_dynamic_quant` (unless x is quantised), then `npu_quant_matmul`.

    The op adds the bias after both scales (in the output's dtype or float32, as its table allows); the epilogue runs in
    float32 on its 16-bit output.
    """
    q = x if isinstance(x, QTensor) else tokens(x)
    if q.scheme != "int8-token":
        raise InputError(f"an int8-channel weight needs int8-token activations, not {q.scheme}")
    y = npu.npu_quant_matmul(
        q.values.reshape(-1, q.shape[-1]),
        weight.values,
        weight.scales,
        pertoken_scale=q.scales.reshape(-1),
        bias=bias if bias is None or bias.dtype == q.dtype else bias.to(torch.float32),
        output_dtype=q.dtype,
    )
    return epilogue(y.view(*q.shape[:-1], y.shape[-1]), activation, residual, gate)


def linear_int4(
    x: Tensor | QTensor, weight: Int4Weight, bias: Tensor | None = None, *,
    activation: str | None = None, residual: Tensor | None = None, gate: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`turbort.ops.linear` at w4a16 and w4a8: `npu_weight_quant_batchmatmul` with groups of 128 inputs.

    The op takes 16-bit activations only, so int8 tokens from a norm are widened first and a 16-bit x stays as it is: at
    w4a8 the weights take half the memory of w8a8, and the products run on the 16-bit units. The op wants scales in x's dtype
    (rounding them is within the precisions' budgets), and a float32 bias for bfloat16, a float16 bias for float16.
    """
    if isinstance(x, QTensor):
        if x.scheme != "int8-token":
            raise InputError(f"an int4-group128 weight needs 16-bit or int8-token activations, not {x.scheme}")
        x = x.dequantize(x.dtype)
    wide = torch.float32 if x.dtype == torch.bfloat16 else x.dtype
    y = npu.npu_weight_quant_batchmatmul(
        x.reshape(-1, x.shape[-1]),
        weight.values,
        weight.scales.to(x.dtype),
        bias=None if bias is None else bias.to(wide),
        antiquant_group_size=GROUP,
    )
    return epilogue(y.view(*x.shape[:-1], y.shape[-1]), activation, residual, gate)


def epilogue(y: Tensor, activation: str | None, residual: Tensor | None, gate: Tensor | None) -> Tensor:
    """act(y), or residual + gate * act(y) in float32 and the residual's dtype."""
    if activation == "gelu_tanh":
        y = F.gelu(y, approximate="tanh")
    elif activation is not None:
        raise InputError(f"activation {activation!r} is not fused into linear", tried=["allowed: None, 'gelu_tanh'"])
    if residual is None:
        return y
    added = y.to(torch.float32) if gate is None else y.to(torch.float32) * gate.to(torch.float32)
    return (residual.to(torch.float32) + added).to(residual.dtype)
