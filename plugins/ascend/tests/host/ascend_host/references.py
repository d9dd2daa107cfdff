"""What torch-npu's fused ops compute, written down for the CPU: formulas from the vendor's documents, not its kernels.

Each takes the arguments of the op's schema. Results are checked against torch-npu's own Meta kernels by the emulator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from turbort.quant.intmm import int_matmul

REFERENCES: dict[str, Callable[..., Any]] = {}
DTYPES = {1: torch.int8, 5: torch.float16, 6: torch.float32, 15: torch.bfloat16, 3: torch.int32}
"""torch's own numbers of scalar types, as torch-npu's schemas take them."""


def reference(function: Callable[..., Any]) -> Callable[..., Any]:
    """Enter a function under `npu::` and its own name."""
    REFERENCES[f"npu::{function.__name__}"] = function
    return function


def _dtype(value: Any, otherwise: torch.dtype) -> torch.dtype:
    if value is None:
        return otherwise
    return value if isinstance(value, torch.dtype) else DTYPES[int(value)]


@reference
def npu_dynamic_quant(x: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """scale = max |row| / 127, y = round(x / scale)."""
    _only(options, dst_type=None, quant_mode="pertoken")
    if x.dtype not in (torch.float16, torch.bfloat16):
        raise RuntimeError(f"npu_dynamic_quant takes float16 or bfloat16, not {x.dtype}")
    wide = x.to(torch.float32)
    scale = wide.abs().amax(-1) / 127.0
    codes = (wide / scale.unsqueeze(-1)).nan_to_num(0.0).round().clamp(-128, 127)
    return codes.to(torch.int8), scale


@reference
def npu_gelu_quant(
    x: Tensor, *, approximate: str = "none", quant_mode: str = "dynamic", dst_type: Any = None, **options: Any
) -> tuple[Tensor, Tensor]:
    """GELU in float32, then as `npu_dynamic_quant`."""
    _only(options, round_mode="rint")
    if quant_mode != "dynamic" or dst_type not in (1, torch.int8):
        raise RuntimeError(f"this reference knows dynamic int8, not {quant_mode} {dst_type}")
    wide = torch.nn.functional.gelu(x.to(torch.float32), approximate=approximate)
    scale = wide.abs().amax(-1) / 127.0
    return (wide / scale.unsqueeze(-1)).nan_to_num(0.0).round().clamp(-128, 127).to(torch.int8), scale


@reference
def npu_add_layer_norm(
    x1: Tensor, x2: Tensor, gamma: Tensor, beta: Tensor, epsilon: float = 1e-5, additional_output: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """LayerNorm of x1 + x2 with mean and 1 / deviation, and the sum."""
    if x1.dtype != x2.dtype or gamma.dtype != beta.dtype:
        raise RuntimeError(f"x1 {x1.dtype} and x2 {x2.dtype}, gamma {gamma.dtype} and beta {beta.dtype} must agree")
    total = x1.to(torch.float32) + x2.to(torch.float32)
    mean = total.mean(-1, keepdim=True)
    rstd = torch.rsqrt((total - mean).square().mean(-1, keepdim=True) + epsilon)
    y = (total - mean) * rstd * gamma.to(torch.float32) + beta.to(torch.float32)
    return y.to(x1.dtype), mean, rstd, total.to(x1.dtype)


@reference
def npu_quant_matmul(
    x1: Tensor,
    x2: Tensor,
    scale: Tensor,
    *,
    pertoken_scale: Tensor | None = None,
    bias: Tensor | None = None,
    output_dtype: Any = None,
    **options: Any,
) -> Tensor:
    """(x1 x2 + int32 bias) * scale * pertoken_scale + float bias, in the output dtype."""
    _only(options, offset=None)
    out = _dtype(output_dtype, torch.int8)
    if out == torch.bfloat16 and pertoken_scale is None and scale.dtype == torch.int64:
        raise RuntimeError("bfloat16 output takes a float32 or bfloat16 scale")
    if out == torch.float16 and pertoken_scale is None and scale.dtype == torch.bfloat16:
        raise RuntimeError("float16 output without pertoken_scale takes an int64 or float32 scale")
    if pertoken_scale is not None and pertoken_scale.dtype != torch.float32:
        raise RuntimeError(f"pertoken_scale is {pertoken_scale.dtype}, not float32")
    total = int_matmul(x1.contiguous(), x2.t().contiguous())
    if bias is not None and bias.dtype == torch.int32:
        total = total + bias
    y = total.to(torch.float32) * scale.to(torch.float32)
    if pertoken_scale is not None:
        y = y * pertoken_scale.unsqueeze(-1)
    if bias is not None and bias.dtype != torch.int32:
        y = y + bias.to(torch.float32)
    return y.to(out)


@reference
def npu_convert_weight_to_int4pack(weight: Tensor, inner_k_tiles: int = 0) -> Tensor:
    """Eight int4 of the last axis per int32, the first in the lowest bits."""
    if weight.dtype != torch.int32 or weight.shape[-1] % 8 or not weight.is_contiguous():
        raise RuntimeError("int4pack takes a contiguous int32 matrix whose last axis is a multiple of 8")
    nibbles = (weight.to(torch.int64) & 0xF).unflatten(-1, (-1, 8))
    packed = (nibbles << (4 * torch.arange(8))).sum(-1)
    return torch.where(packed >= 1 << 31, packed - (1 << 32), packed).to(torch.int32)


def unpacked(packed: Tensor) -> Tensor:
    """The inverse of int4pack: int32 [..., N / 8] -> float32 codes [..., N]."""
    nibbles = (packed.to(torch.int64).unsqueeze(-1) >> (4 * torch.arange(8))) & 0xF
    return (((nibbles + 8) & 0xF) - 8).flatten(-2).to(torch.float32)


@reference
def npu_weight_quant_batchmatmul(
    x: Tensor, weight: Tensor, antiquant_scale: Tensor, antiquant_offset: Tensor | None = None, quant_scale: Tensor | None = None,
    quant_offset: Tensor | None = None, bias: Tensor | None = None, antiquant_group_size: int = 0, **options: Any,
) -> Tensor:  # fmt: skip
    """x (weight * scale per group) + bias, in x's dtype."""
    _only(options, inner_precise=0, weight_dtype=None)
    if not (antiquant_offset is quant_scale is quant_offset is None):
        raise RuntimeError("this reference takes no offset and no output scale")
    if antiquant_scale.dtype != x.dtype:
        raise RuntimeError(f"antiquant_scale is {antiquant_scale.dtype}, x is {x.dtype}")
    wanted = torch.float32 if x.dtype == torch.bfloat16 else torch.float16
    if bias is not None and bias.dtype != wanted:
        raise RuntimeError(f"bias is {bias.dtype}; with {x.dtype} activations it must be {wanted}")
    if not 32 <= antiquant_group_size < x.shape[-1]:
        raise RuntimeError(f"a group of {antiquant_group_size} is outside [32, K - 1]")
    codes = unpacked(weight)
    full = codes * antiquant_scale.to(torch.float32).repeat_interleave(antiquant_group_size, 0)[: codes.shape[0]]
    y = x.to(torch.float32) @ full
    return (y if bias is None else y + bias.to(torch.float32)).to(x.dtype)


@reference
def npu_rms_norm(x: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    """x * rstd * gamma with rstd = 1 / sqrt(mean(x^2) + eps), both in float32."""
    if gamma.dtype != x.dtype:
        raise RuntimeError(f"gamma is {gamma.dtype}, x is {x.dtype}: the documented op wants them equal")
    wide = x.to(torch.float32)
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return (wide * rstd * gamma.to(torch.float32)).to(x.dtype), rstd


@reference
def npu_rotary_mul(x: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half", rotate: Tensor | None = None) -> Tensor:
    """r1 * x + r2 * rotated(x); interleaved: (x0, x1) -> (-x1, x0) per pair."""
    if rotary_mode != "interleave" or rotate is not None:
        raise RuntimeError("this reference knows the interleaved mode only")
    if x.dtype != r1.dtype or x.dtype != r2.dtype or r1.shape[-1] != x.shape[-1] or r1.shape[0] != 1 or r1.shape[2] != 1:
        raise RuntimeError(f"tables {tuple(r1.shape)} {r1.dtype} do not fit {tuple(x.shape)} {x.dtype}")
    wide = x.to(torch.float32)
    turned = torch.stack((-wide[..., 1::2], wide[..., 0::2]), dim=-1).flatten(-2)
    return (r1.to(torch.float32) * wide + r2.to(torch.float32) * turned).to(x.dtype)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T * scale) v over [B, H, L, d] in float32; chunks of queries bound memory."""
    keys, values, out = k.to(torch.float32), v.to(torch.float32), []
    for start in range(0, q.shape[2], 1024):
        scores = q[:, :, start : start + 1024].to(torch.float32) @ keys.transpose(-1, -2) * scale
        if mask is not None:
            scores = scores.masked_fill(~mask[:, :, start : start + 1024], float("-inf"))
        out.append(scores.softmax(-1) @ values)
    return torch.cat(out, 2).to(q.dtype)


def _heads_first(layout: str, *tensors: Tensor) -> list[Tensor]:
    if layout == "BNSD":
        return list(tensors)
    if layout == "BSND":
        return [t.transpose(1, 2) for t in tensors]
    raise RuntimeError(f"this reference knows BNSD and BSND, not {layout}")


def _dense(q: Tensor, k: Tensor, v: Tensor, layout: str, heads: int, scale: float) -> Tensor:
    queries, keys, values = _heads_first(layout, q, k, v)
    if queries.shape[1] != heads:
        raise RuntimeError(f"layout {layout} of {tuple(q.shape)} has {queries.shape[1]} heads, not {heads}")
    out = softmax_attention(queries, keys, values, scale)
    return out if layout == "BNSD" else out.transpose(1, 2).contiguous()


@reference
def npu_fused_infer_attention_score(
    q: Tensor, k: Tensor, v: Tensor, *, num_heads: int = 1, scale: float = 1.0, input_layout: str = "BSH", **options: Any
) -> tuple[Tensor, Tensor]:
    """Dense attention; the second output (log-sum-exp) is asked for by a flag that turbort leaves off."""
    if options:
        raise RuntimeError(f"this reference takes no {', '.join(options)}")
    return _dense(q, k, v, input_layout, num_heads, scale), torch.zeros(1)


@reference
def npu_prompt_flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_heads: int = 1,
    scale_value: float = 1.0,
    next_tokens: int = 0,
    input_layout: str = "BSH",
    **options: Any,
) -> Tensor:
    """Dense attention; without `next_tokens` it is causal, which no caller of turbort wants."""
    if options or next_tokens < q.shape[1]:
        raise RuntimeError(
            f"next_tokens {next_tokens} hides keys" if not options else f"this reference takes no {', '.join(options)}"
        )
    return _dense(q, k, v, input_layout, num_heads, scale_value)


@reference
def npu_fusion_attention(
    q: Tensor, k: Tensor, v: Tensor, head_num: int, input_layout: str, pse: Tensor | None = None,
    padding_mask: Tensor | None = None, atten_mask: Tensor | None = None, scale: float = 1.0, keep_prob: float = 1.0,
    pre_tockens: int = 2147483647, next_tockens: int = 2147483647, *args: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int, int]:  # fmt: skip
    """Dense attention; the other outputs serve the backward pass and are not filled."""
    if not (pse is padding_mask is atten_mask is None) or keep_prob != 1.0 or min(pre_tockens, next_tockens) < k.shape[1]:
        raise RuntimeError("this reference knows dense attention without mask and dropout")
    length = q.shape[2 if input_layout == "BNSD" else 1]
    statistic = torch.zeros(q.shape[0], head_num, length, 8)
    return _dense(q, k, v, input_layout, head_num, scale), statistic, statistic.clone(), torch.empty(0, dtype=q.dtype), 0, 0, 0


@reference
def npu_fusion_attention_v3(
    q: Tensor, k: Tensor, v: Tensor, head_num: int, input_layout: str, pse: Tensor | None = None,
    padding_mask: Tensor | None = None, atten_mask: Tensor | None = None, scale: float = 1.0, *args: Any, **options: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """What `F.scaled_dot_product_attention` becomes on an NPU; `atten_mask` is 1 where a key is hidden."""
    if pse is not None or padding_mask is not None or input_layout != "BNSD":
        raise RuntimeError("this reference knows BNSD without pse and padding_mask")
    mask = None if atten_mask is None else ~atten_mask.to(torch.bool).expand(*q.shape[:3], k.shape[2])
    out = softmax_attention(q, k, v, scale, mask)
    statistic = torch.zeros(*q.shape[:3], 8)
    return (
        out,
        statistic,
        statistic.clone(),
        torch.empty(0, dtype=q.dtype),
        torch.zeros(1, dtype=torch.int64),
        torch.zeros(1, dtype=torch.int64),
    )


@reference
def npu_block_sparse_attention(
    query: Tensor, key: Tensor, value: Tensor, block_sparse_mask: Tensor, block_shape: Sequence[int], *,
    q_input_layout: str = "TND", kv_input_layout: str = "TND", num_key_value_heads: int = 1, scale_value: float = 0.0,
    inner_precise: int = 1, **options: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention of each query block to the key blocks whose mask is 1."""
    if options or q_input_layout != "BNSD" or kv_input_layout != "BNSD":
        raise RuntimeError("this reference knows BNSD without lengths")
    if query.shape[1] != num_key_value_heads:
        raise RuntimeError(f"{query.shape[1]} heads, num_key_value_heads {num_key_value_heads}")
    rows, cols = block_shape
    mask = block_sparse_mask.to(torch.bool).repeat_interleave(rows, 2).repeat_interleave(cols, 3)
    mask = mask[:, :, : query.shape[2], : key.shape[2]]
    return softmax_attention(query, key, value, scale_value, mask), torch.zeros(1)


def _only(options: dict[str, Any], **defaults: Any) -> None:
    """Refuse options this file has no formula for."""
    strange = {
        name: value
        for name, value in options.items()
        if value is not None and value != defaults.get(name) and value not in (0, 0.0)
    }
    if strange:
        raise RuntimeError(f"this reference takes no {', '.join(strange)}")
