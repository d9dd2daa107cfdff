"""Layers shared by the models: linears and norms with call sites that a plan can bind."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from turbort import ops
from turbort.op import slot


class Linear(nn.Module):
    """y = act(x W^T + b), or residual + gate * y; W is [out, in], x [..., in].

    `weight` is a Parameter until a plan is bound; a kernel may then leave a packed object in its place. Weights
    with more than two axes (1x1 convolutions, patch embeddings) are flattened to [out, -1].
    With `fp32` the product is computed in float32 whatever the parameters are stored in.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        role: str,
        activation: str | None = None,
        shape: tuple[int, ...] | None = None,
        fp32: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape or (out_features, in_features)))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.activation = activation
        self.fp32 = fp32
        self.op = slot(ops.linear, role)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform weights and zero bias, as Wan starts from."""
        if self.weight.device.type != "meta":
            nn.init.xavier_uniform_(self.weight.view(self.weight.shape[0], -1))
            if self.bias is not None:
                nn.init.zeros_(self.bias)

    def matrix(self) -> Tensor:
        """The weight as [out, in]."""
        return self.weight.flatten(1)

    def forward(self, x: Tensor, *, residual: Tensor | None = None, gate: Tensor | None = None) -> Tensor:
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if isinstance(weight, Tensor):
            weight = weight.flatten(1)
            if self.fp32:
                weight, bias = weight.float(), None if bias is None else bias.float()
        y: Tensor = self.op(x, weight, bias, activation=self.activation, residual=residual, gate=gate)
        return y


class RmsNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""

    def __init__(self, dim: int, *, eps: float, role: str = "norm") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps
        self.op = slot(ops.rms_norm, role)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.op(x, self.weight, eps=self.eps)
        return y


class RopeNorm(nn.Module):
    """RMSNorm over the full width, then heads, then rotary embedding: [B, L, D] -> [B, L, heads, D / heads]."""

    def __init__(self, dim: int, heads: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.heads = heads
        self.eps = eps
        self.op = slot(ops.qk_norm_rope, "norm")

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        y: Tensor = self.op(x, self.weight, cos, sin, heads=self.heads, eps=self.eps)
        return y


class LayerNorm(nn.Module):
    """LayerNorm with weight and bias, statistics in float32."""

    def __init__(self, dim: int, *, eps: float, role: str = "norm") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.eps = eps
        self.op = slot(ops.layer_norm, role)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.op(x, self.weight, self.bias, eps=self.eps)
        return y


def sinusoid(t: Tensor, dim: int) -> Tensor:
    """[..., dim] float32: cos then sin of t * 10000^(-i / (dim/2)), i = 0 .. dim/2 - 1."""
    half = dim // 2
    freq = torch.exp(torch.arange(half, device=t.device, dtype=torch.float32) * (-math.log(10000.0) / half))
    angle = t.float()[..., None] * freq
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
