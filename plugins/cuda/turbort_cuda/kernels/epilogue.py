"""What the linears share outside their products: reading the arguments, and the last steps' pointers and strides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from turbort.errors import InputError
from turbort.quant.qtensor import QTensor
from turbort_cuda.launch import rows_of, three


@dataclass(frozen=True)
class Epilogue:
    """Bias, activation, gate and residual of one call, ready to pass to a kernel.

    `out` is the flat result [M, N]; `finished` gives it the shape the op returns.
    """

    out: Tensor
    bias: Tensor
    residual: Tensor
    gate: Tensor
    length: int
    strides: tuple[int, int, int]
    flags: dict[str, Any]
    shape: tuple[int, ...]

    @property
    def pointers(self) -> tuple[Any, ...]:
        """bias, residual, gate, length, stride_r, stride_gb, stride_gl: as every linear kernel takes them."""
        return (self.bias, self.residual, self.gate, self.length, *self.strides)

    def finished(self) -> Tensor:
        return self.out.view(self.shape)


def epilogue(
    shape: tuple[int, ...],
    n: int,
    dtype: torch.dtype,
    device: torch.device,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
    gate: Tensor | None,
) -> Epilogue:
    """Check and lay out what follows the product of x with shape [..., K]. Raises InputError for an unknown activation."""
    if activation not in (None, "gelu_tanh"):
        raise InputError(f"activation {activation!r} is not fused into linear", tried=["allowed: None, 'gelu_tanh'"])
    lead = tuple(shape[:-1])
    m = 1
    for size in lead:
        m *= size
    kind = dtype if residual is None else residual.dtype
    out = torch.empty((m, n), dtype=kind, device=device)
    length = lead[-1] if lead else 1
    mode, stride_gb, stride_gl, stride_r = 0, 0, 0, 0
    if residual is not None:
        residual = rows_of(residual)
        stride_r = residual.stride(0)
        if gate is not None:
            gate, stride_gb, stride_gl = three(gate, m // max(length, 1), length)
            mode = 2 if stride_gb or stride_gl else 1
    flags = {
        "HAS_BIAS": bias is not None,
        "GELU": activation is not None,
        "RESIDUAL": residual is not None,
        "GATE": mode,
    }
    spare = out  # a pointer for arguments that the flags switch off
    return Epilogue(
        out,
        spare if bias is None else bias.contiguous(),
        spare if residual is None else residual,
        spare if gate is None or residual is None else gate,
        max(length, 1),
        (stride_r, stride_gb, stride_gl),
        flags,
        (*lead, n),
    )


def unpack_input(x: Tensor | QTensor) -> tuple[Tensor, torch.dtype, tuple[int, ...]]:
    """Values, dtype that they stand for, and shape."""
    values = x.values if isinstance(x, QTensor) else x
    return values, x.dtype, tuple(values.shape)
