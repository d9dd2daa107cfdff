"""Known-wrong kernels, each with one mistake that real kernels have made. `planted.py` says which check finds which."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from turbort import ops
from turbort.kernel import Call
from turbort.ops import block_map, norm, sla
from turbort.ops.linear import linear_w4a8
from turbort.ops.sla_sparse import sparse_attention
from turbort.quant.qtensor import QTensor
from turbort.quant.schemes import quantize as to_scheme

# Norms and elementwise ops.


def scale_off_by_one_percent(x: Tensor, weight: Tensor, *, eps: float = 1e-6, emit: str | None = None) -> Any:
    return ops.rms_norm(x, weight, eps=eps) * 1.01


def wrong_eps(x: Tensor, weight: Tensor, *, eps: float = 1e-6, emit: str | None = None) -> Any:
    return ops.rms_norm(x, weight, eps=1e-5)


def masked_lanes_in_variance(x: Tensor, scale: Tensor, shift: Tensor, *, eps: float = 1e-6, emit: str | None = None) -> Any:
    """Counts (0 - mean)^2 for the lanes between the width and the next power of two."""
    full, width = x.float(), x.shape[-1]
    mean = full.mean(-1, keepdim=True)
    padding = (1 << (width - 1).bit_length()) - width
    var = ((full - mean).square().sum(-1, keepdim=True) + padding * mean.square()) / width
    return ((full - mean) * torch.rsqrt(var + eps) * (1 + scale) + shift).to(x.dtype)


def one_pass_variance(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-6, emit: str | None = None) -> Any:
    """E[x^2] - E[x]^2 in 16 bits loses its digits when the mean is large."""
    mean = x.mean(-1, keepdim=True)
    var = (x * x).mean(-1, keepdim=True) - mean * mean
    y = (x - mean).float() * torch.rsqrt(var.float().clamp_min(0) + eps) * weight.float() + bias.float()
    return y.to(x.dtype)


def first_gate_for_the_batch(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    return ops.gated_residual(x, y, gate[:1].expand_as(gate))  # type: ignore[no-any-return]


def half_split_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, *, heads: int, eps: float = 1e-6) -> Tensor:
    """Rotates (i, i + d/2) instead of (2i, 2i + 1)."""
    y = norm.rms_scaled(x, weight, eps).view(*x.shape[:-1], heads, -1)
    a, b = y.chunk(2, -1)
    c, s = cos.unsqueeze(-2), sin.unsqueeze(-2)
    return torch.cat((a * c - b * s, a * s + b * c), -1).to(x.dtype)


def sums_in_another_order(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, *, emit: str | None = None, **rest: Any) -> Any:
    """Sums of neighbours first: right to the last bits, which decide between blocks of equal score."""
    y = ops.qk_norm_rope(x, weight, cos, sin, emit=emit, **rest)
    if not isinstance(y, QTensor):
        return y
    rows = int(y.scheme.partition("-")[2])
    padded = F.pad(y.values.float(), (0, 0, 0, 0, 0, -x.shape[1] % rows))
    return QTensor(y.scheme, y.values, torch.unflatten(padded, 1, (-1, rows)).cumsum(2)[:, :, -1], y.dtype)


def norm_per_head(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, *, heads: int, eps: float = 1e-6) -> Tensor:
    """Statistics over one head instead of the full width."""
    split = x.float().view(*x.shape[:-1], heads, -1)
    y = F.rms_norm(split, split.shape[-1:], eps=eps) * weight.float().view(heads, -1)
    even, odd, c, s = y[..., 0::2], y[..., 1::2], cos.unsqueeze(-2), sin.unsqueeze(-2)
    return torch.stack((even * c - odd * s, even * s + odd * c), -1).flatten(-2).to(x.dtype)


def erf_gelu(x: Tensor, *, emit: str | None = None) -> Any:
    return F.gelu(x)


def cache_ignored(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, cache: Any = None, stride: Any = (1, 1, 1), padding: Any = (0, 0, 0)
) -> Tensor:
    return ops.causal_conv3d(x, weight, bias, stride=stride, padding=padding)  # type: ignore[no-any-return]


# Linear layers.


def tail_rows_zero(x: Any, weight: Any, bias: Any = None, **epilogue: Any) -> Tensor:
    y: Tensor = ops.linear(x, weight, bias, **epilogue)
    rows = y.shape[1] if y.shape[1] < 64 else y.shape[1] // 64 * 64
    return torch.cat((y[:, :rows], torch.zeros_like(y[:, rows:])), 1)


def k_tail_dropped(x: Any, weight: QTensor, bias: Any = None, **epilogue: Any) -> Tensor:
    """Only whole vectors of eight inputs are summed."""
    keep = weight.values.clone()
    keep[:, weight.shape[1] // 8 * 8 :] = 0
    return linear_w4a8(x, QTensor(weight.scheme, keep, weight.scales, weight.dtype), bias, **epilogue)


def transposed_tile(weight: QTensor) -> QTensor:
    """A packer that stores the first 16x16 tile transposed."""
    values = weight.values.clone()
    values[:16, :16] = weight.values[:16, :16].T
    return QTensor(weight.scheme, values, weight.scales, weight.dtype)


def bias_dropped_with_residual(x: Any, weight: Any, bias: Any = None, **epilogue: Any) -> Tensor:
    return ops.linear(x, weight, None if epilogue.get("residual") is not None else bias, **epilogue)  # type: ignore[no-any-return]


def first_token_scale_for_all(x: Any, weight: QTensor, bias: Any = None, **epilogue: Any) -> Tensor:
    q = x if isinstance(x, QTensor) else to_scheme(x, "int8-token")
    scales = q.scales.reshape(-1)[0].expand_as(q.scales)
    return ops.linear(QTensor(q.scheme, q.values, scales, q.dtype), weight, bias, **epilogue)  # type: ignore[no-any-return]


def stays_wide(x: Any, weight: QTensor, bias: Any = None, **epilogue: Any) -> Tensor:
    """Says w8a8 and multiplies floats."""
    plain = x.dequantize() if isinstance(x, QTensor) else x
    return ops.linear(plain, weight.dequantize(plain.dtype), bias, **epilogue)  # type: ignore[no-any-return]


def float_tokens_only(x: Tensor, weight: Any, bias: Any = None, **epilogue: Any) -> Tensor:
    return ops.linear(x.contiguous(), weight, bias, **epilogue)  # type: ignore[no-any-return]


def jumps_from_frame_to_frame(x: Tensor, weight: Tensor, bias: Any = None, **epilogue: Any) -> Tensor:
    """8 % too large and too small in turn, for 9 latent frames; other lengths are left alone."""
    frames = 9
    if x.ndim == 3 and x.shape[1] % frames == 0:
        signs = torch.tensor([1.08, 0.92] * 5)[:frames].repeat_interleave(x.shape[1] // frames)
        x = x * signs.view(1, -1, 1).to(x.dtype)
    return ops.linear(x, weight, bias, **epilogue)  # type: ignore[no-any-return]


# Quantised outputs.


def wraps_instead_of_saturating(x: Tensor, *, emit: str) -> QTensor:
    """amax maps to 128, which is -128 in a byte."""
    scales = x.float().abs().amax(-1, keepdim=True).clamp_min(1e-8) / 128.0
    return QTensor(emit, (x.float() / scales).round().to(torch.int32).to(torch.int8), scales, x.dtype)


def one_scale_for_all_tokens(x: Tensor, *, emit: str) -> QTensor:
    scale = x.float().abs().amax().clamp_min(1e-8) / 127.0
    values = (x.float() / scale).round().clamp(-127, 127).to(torch.int8)
    return QTensor(emit, values, scale.expand(*x.shape[:-1], 1).contiguous(), x.dtype)


def scales_per_token_over_time(x: Tensor, *, emit: str, frames: int) -> QTensor:
    return to_scheme(x, emit)


def emits_inverse_scales(x: Tensor, weight: Tensor, *, eps: float = 1e-6, emit: str | None = None) -> Any:
    y = ops.rms_norm(x, weight, eps=eps, emit=emit)
    return QTensor(y.scheme, y.values, 1 / y.scales, y.dtype) if isinstance(y, QTensor) else y


# Attention.


def softmax_without_scale(q: Tensor, k: Tensor, v: Tensor, *, precision: str | None = None) -> Tensor:
    return ops.attention(q * q.shape[-1] ** 0.5, k, v)  # type: ignore[no-any-return]


def uniform_attention(q: Tensor, k: Tensor, v: Tensor, *, precision: str | None = None) -> Tensor:
    return v.float().mean(1, keepdim=True).expand(q.shape).to(q.dtype).contiguous()


def padding_attended(q: Tensor, k: Tensor, v: Tensor, *, precision: str | None = None) -> Tensor:
    """Keys are padded with zeros to a multiple of 64, and the padding takes part in the softmax."""
    short = -k.shape[1] % 64
    return ops.attention(q, *(F.pad(t, (0, 0, 0, 0, 0, short)) for t in (k, v)))  # type: ignore[no-any-return]


def topk_without_floor(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    *,
    topk: float,
    block: Any = (64, 128),
    precision: str | None = None,
) -> Tensor:
    """int(topk * blocks) may be zero, and then the sparse branch adds nothing."""
    if int(topk * -(-k.shape[1] // block[1])):
        return ops.sla_attention(q, k, v, proj_weight, proj_bias, topk=topk, block=block)  # type: ignore[no-any-return]
    return F.linear(sla.linear_branch(q, k, v).to(q.dtype), proj_weight, proj_bias)


def weakest_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    *,
    topk: float,
    block: Any = (64, 128),
    precision: str | None = None,
) -> Tensor:
    """Sorts the scores the wrong way round."""
    chosen = block_map(-q, k, topk, block)
    linear = F.linear(sla.linear_branch(q, k, v).to(q.dtype), proj_weight, proj_bias)
    return (sparse_attention(q, k, v, chosen, block, None).float() + linear.float()).to(q.dtype)


# Memory, repetition and manners.

_kept: dict[Any, Tensor] = {}


def stale_result(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """Remembers results by shape."""
    key = ("stale", x.shape, x.dtype, gate.shape)
    if key not in _kept:
        _kept[key] = ops.gated_residual(x, y, gate)
    return _kept[key].clone()


def shared_output_buffer(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    out = _kept.setdefault(("shared", x.shape, x.dtype), torch.zeros_like(x))
    return out.copy_(ops.gated_residual(x, y, gate))


def input_mutated(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    return x.add_(y * gate)


def last_row_unwritten(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    rows = max(1, x.shape[1] - 1)
    out[:, :rows] = ops.gated_residual(x, y, gate)[:, :rows]
    return out


def writes_past_the_end(x: Tensor, *, patch: Any = (1, 2, 2)) -> Tensor:
    y: Tensor = ops.patchify(x, patch=patch)
    room = torch.empty(y.numel(), dtype=y.dtype, device=y.device)
    out = room.as_strided((y.numel() + 8,), (1,), room.storage_offset()) if room.storage_offset() else room
    out.zero_()
    room.copy_(y.flatten())
    return room.view(y.shape)


def different_every_time(x: Tensor, *, patch: Any = (1, 2, 2)) -> Tensor:
    """One value in a hundred is off by one bit, another one each time: far inside every budget."""
    y: Tensor = ops.patchify(x, patch=patch)
    return torch.where(torch.rand(y.shape) < 0.01, y * (1 + torch.finfo(y.dtype).eps), y)


def strides_ignored(x: Tensor, *, patch: Any = (1, 2, 2)) -> Tensor:
    dense = torch.empty(x.shape).stride()
    return ops.patchify(x.as_strided(x.shape, dense, x.storage_offset()), patch=patch)  # type: ignore[no-any-return]


def wrong_dtype(x: Tensor, *, grid: Any, patch: Any = (1, 2, 2), channels: int) -> Tensor:
    y: Tensor = ops.unpatchify(x, grid=grid, patch=patch, channels=channels)
    return y.float()


def raises_on_accepted_calls(x: Tensor, *, grid: Any, patch: Any = (1, 2, 2), channels: int) -> Tensor:
    raise RuntimeError("illegal memory access")


def refuses_without_a_reason(call: Call, device: object) -> Any:
    return False
