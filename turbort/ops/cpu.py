"""CPU kernels on oneDNN with weights reordered once at load; docs/adr/0006-cpu-kernels.md has the measurements.

torch's `F.linear` reorders a weight on every call, and its float32 matmul goes to MKL, which is about half as
fast as oneDNN on AMD processors. For int8, `torch._int_mm` reorders too and leaves three passes over an int32
result; oneDNN's quantised linear scales inside the product. Its activations must be unsigned: with signed ones
oneDNN 3.x has no vectorised implementation and falls back to one that is thousands of times slower.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from turbort.errors import InputError
from turbort.ops._numeric import wide
from turbort.quant.qtensor import QTensor
from turbort.quant.schemes import quantize

ZERO_POINT = 128
"""What turns an int8 code into an unsigned one; oneDNN takes it off again, exactly, inside the product."""

CACHED_ELEMENTS = 1 << 19
"""2 MiB of float32: about what a core keeps in its own cache."""


@dataclass(frozen=True)
class CpuWeight:
    """A weight in oneDNN's blocked layout.

    `packed` is opaque and stands for [N, K]; `scales` float32 [N] and `zeros` int64 [N] exist for int8 only.
    """

    packed: Tensor
    shape: tuple[int, int]
    scales: Tensor | None = None
    zeros: Tensor | None = None


def pack_float(weight: Tensor, bias: Tensor | None = None) -> CpuWeight:
    """Reorder a float32 or bfloat16 weight [N, K] (further axes are flattened into K) for `linear_float`."""
    matrix = weight.detach().flatten(1)
    packed = torch.ops.mkldnn._reorder_linear_weight(matrix.contiguous(), None)
    return CpuWeight(packed, (matrix.shape[0], matrix.shape[1]))


def pack_int8(weight: QTensor, bias: Tensor | None = None) -> CpuWeight:
    """Reorder an `int8-channel` weight for `linear_int8`; raises InputError for another scheme."""
    if weight.scheme != "int8-channel":
        raise InputError(f"the CPU int8 linear packs int8-channel weights, not {weight.scheme}")
    n, k = weight.shape
    packed = torch.ops.onednn.qlinear_prepack(weight.values.contiguous(), None)
    return CpuWeight(packed, (n, k), weight.scales.flatten().contiguous(), torch.zeros(n, dtype=torch.int64))


def linear_float(
    x: Tensor,
    weight: CpuWeight,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    """The reference `linear` for a float weight from `pack_float`; GELU runs on the float32 sums."""
    bias = None if bias is None else bias.to(x.dtype)
    post = ("none", "") if activation is None else (_gelu(activation), "tanh")
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    y = torch.ops.mkldnn._linear_pointwise(rows, weight.packed, bias, post[0], [], post[1])
    return _finish(y.view(*x.shape[:-1], weight.shape[0]), x.dtype, residual, gate)


def linear_int8(
    x: Tensor | QTensor,
    weight: CpuWeight,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    """The reference `linear` at w8a8 for a weight from `pack_int8`: the same int32 sums, scaled in float32."""
    qx = x if isinstance(x, QTensor) else quantize_tokens(x)
    if qx.scheme != "int8-token":
        raise InputError(f"the CPU int8 linear takes int8-token activations, not {qx.scheme}")
    rows = qx.values.reshape(-1, qx.shape[-1]).contiguous()
    unsigned = rows.view(torch.uint8).bitwise_xor(ZERO_POINT)
    y = torch.ops.onednn.qlinear_pointwise(
        unsigned, 1.0, ZERO_POINT, weight.packed, weight.scales, weight.zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    scales = qx.scales.reshape(-1, 1)
    y = y.mul_(scales) if bias is None else torch.addcmul(wide(bias.detach()), y, scales, out=y)
    if activation is not None:
        _gelu(activation)
        y = F.gelu(y, approximate="tanh")
    return _finish(y.view(*qx.shape[:-1], weight.shape[0]), qx.dtype, residual, gate)


def quantize_tokens(x: Tensor) -> QTensor:
    """`quantize(x, "int8-token")`, a few rows at a time so that no pass leaves the cache."""
    width = x.shape[-1]
    rows = x.reshape(-1, width)
    step = max(1, CACHED_ELEMENTS // width)
    if rows.shape[0] <= step:
        return quantize(x, "int8-token")
    values = torch.empty(rows.shape, dtype=torch.int8)
    scales = torch.empty(rows.shape[0], 1, dtype=torch.float32)
    for start in range(0, rows.shape[0], step):
        part = quantize(rows[start : start + step], "int8-token")
        values[start : start + step], scales[start : start + step] = part.values, part.scales
    return QTensor("int8-token", values.view(x.shape), scales.view(*x.shape[:-1], 1), x.dtype)


def _gelu(activation: str) -> str:
    if activation != "gelu_tanh":
        raise InputError(f"activation {activation!r} is not fused into linear", tried=["allowed: None, 'gelu_tanh'"])
    return "gelu"


def _finish(y: Tensor, dtype: torch.dtype, residual: Tensor | None, gate: Tensor | None) -> Tensor:
    if residual is None:
        return y.to(dtype)
    if gate is None:
        return (wide(residual) + wide(y)).to(residual.dtype)
    return torch.addcmul(wide(residual), wide(y), wide(gate)).to(residual.dtype)
