"""The linear layer at every precision, with its fused epilogues."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from turbort.errors import InputError
from turbort.op import op
from turbort.ops._numeric import compute_dtype, no_autocast, wide
from turbort.ops.samples_linear import linear_samples
from turbort.precision import FLOATS, LINEAR
from turbort.quant.block128 import BLOCK
from turbort.quant.intmm import int_matmul
from turbort.quant.qtensor import QTensor
from turbort.quant.schemes import quantize

ACTIVATION_SCHEME = {
    "int8-channel": "int8-token",
    "int8-block128": "int8-block128",
    "fp8-channel": "fp8-token",
    "bsq8": "int8-token",
    "bsq4": "int8-token",
}
"""How `x` is quantised for a weight scheme. `int4-group128` is absent: see `linear`."""


@op(samples=linear_samples, precisions=FLOATS + LINEAR, weights=("weight",))
def linear(
    x: Tensor | QTensor,
    weight: Tensor | QTensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    """y = act(x W^T + b); with `residual`, the result is residual + gate * y.

    x [..., K]; weight [N, K]; bias [N]; residual [B, L, N]; gate [B, 1, N], [B, L, N] or None (= 1).
    Returns [..., N] in `x.dtype`, or in `residual.dtype` when a residual is given.

    The weight's scheme decides the arithmetic; `x` is quantised by the matching rule unless it already is:

    * float: one matmul in `x.dtype`;
    * `int8-channel` (w8a8): exact int32 sums, times token scale times channel scale, in float32;
    * `int8-block128`: exact int32 sum per 128 inputs, scaled and added in float32 in K order, cast to the
      output dtype, and only then the bias (TurboDiffusion's order of operations);
    * `fp8-channel`: float32 sums of e4m3 products, then both scales;
    * `int4-group128`: with a float `x` the weight is dequantised (w4a16); with an `int8-token` QTensor the
      sums are exact per 128 inputs (w4a8, see `linear_w4a8`);
    * `bsq8`, `bsq4`: int8 tokens times dequantised tiles, float32 sums.

    Raises InputError for an unknown activation or a QTensor `x` that does not fit the weight's scheme.
    """
    dtype = x.dtype
    y = _product(x, weight, bias)
    if activation == "gelu_tanh":
        y = F.gelu(y, approximate="tanh")
    elif activation is not None:
        raise InputError(f"activation {activation!r} is not fused into linear", tried=["allowed: None, 'gelu_tanh'"])
    if residual is None:
        return y.to(dtype)
    y = wide(y) if gate is None else wide(y) * wide(gate)
    return (wide(residual) + y).to(residual.dtype)


def linear_w4a8(
    x: Tensor | QTensor,
    weight: QTensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    """`linear` at w4a8: an int4 weight alone cannot say whether activations are 8 or 16 bits wide."""
    x = x if isinstance(x, QTensor) else quantize(x, "int8-token")
    result: Tensor = linear(x, weight, bias, activation=activation, residual=residual, gate=gate)
    return result


def _product(x: Tensor | QTensor, weight: Tensor | QTensor, bias: Tensor | None) -> Tensor:
    """x W^T + b before the epilogue: in x's dtype for float and block128 weights, in float32 otherwise."""
    if not isinstance(weight, QTensor):
        return float_linear(x.dequantize() if isinstance(x, QTensor) else x, weight, bias)
    if weight.scheme == "int4-group128" and not isinstance(x, QTensor):
        return float_linear(x, weight.dequantize(x.dtype), bias)
    qx = _quantised_input(x, weight)
    rows = qx.values.reshape(-1, qx.shape[-1])
    if weight.scheme == "int8-block128":
        y = block_product(rows, qx.scales, weight.values, weight.scales).to(qx.dtype)
        bias = None if bias is None else bias.to(qx.dtype)
    else:
        y = _row_product(rows, weight) * qx.scales.reshape(-1, 1)
        bias = None if bias is None else bias.to(torch.float32)
    y = y if bias is None else y + bias
    return y.view(*qx.shape[:-1], weight.shape[0])


def float_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b in x's dtype, the parameters cast to it."""
    dtype = compute_dtype(x)
    return F.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)).to(x.dtype)


def _quantised_input(x: Tensor | QTensor, weight: QTensor) -> QTensor:
    want = ACTIVATION_SCHEME.get(weight.scheme, "int8-token")
    if not isinstance(x, QTensor):
        return quantize(x, want)
    if x.scheme != want:
        raise InputError(f"a {weight.scheme} weight needs {want} activations, not {x.scheme}")
    return x


def _row_product(rows: Tensor, weight: QTensor) -> Tensor:
    """Codes of x times scaled weight, float32 [M, N]; only the token scale is left to apply."""
    if weight.scheme == "int8-channel":
        return int_matmul(rows, weight.values).to(torch.float32) * weight.scales.t()
    if weight.scheme == "fp8-channel":
        return _float_product(rows, weight.values) * weight.scales.t()
    if weight.scheme == "int4-group128":
        return grouped_product(rows, weight.values, weight.scales)
    return _float_product(rows, weight.dequantize(torch.float32))


def _float_product(rows: Tensor, weight: Tensor) -> Tensor:
    with no_autocast(rows):
        return rows.to(torch.float32) @ weight.to(torch.float32).t()


def grouped_product(rows: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """sum over groups g of 128 inputs: int32(x_g w_g^T) * s[:, g], added in float32 in K order."""
    total = torch.zeros(rows.shape[0], codes.shape[0], dtype=torch.float32, device=rows.device)
    for group in range(scales.shape[1]):
        span = slice(group * BLOCK, (group + 1) * BLOCK)
        total += int_matmul(rows[:, span], codes[:, span]).to(torch.float32) * scales[:, group]
    return total


def block_product(rows: Tensor, row_scales: Tensor, codes: Tensor, col_scales: Tensor) -> Tensor:
    """sum over K tiles t: int32(x_t w_t^T) * (sx[m/128, t] * sw[n/128, t]), added in float32 in K order."""
    m, n = rows.shape[0], codes.shape[0]
    sx = row_scales.repeat_interleave(BLOCK, 0)[:m]
    sw = col_scales.repeat_interleave(BLOCK, 0)[:n]
    total = torch.zeros(m, n, dtype=torch.float32, device=rows.device)
    for tile in range(row_scales.shape[1]):
        span = slice(tile * BLOCK, (tile + 1) * BLOCK)
        scale = sx[:, tile, None] * sw[None, :, tile]
        total += int_matmul(rows[:, span], codes[:, span]).to(torch.float32) * scale
    return total
