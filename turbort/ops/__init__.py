"""Every op of turbort: its reference function is the specification, its samples say what correct means."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from turbort.op import OpSpec
from turbort.ops.attention import attention
from turbort.ops.block_map import block_map
from turbort.ops.conv import causal_conv3d, vae_norm_silu, vae_upsample
from turbort.ops.linear import linear
from turbort.ops.norm import gated_residual, gated_residual_norm_modulate, layer_norm, norm_modulate, rms_norm
from turbort.ops.patch import patchify, unpatchify
from turbort.ops.quant import gelu_quant, quantize, quantize_time
from turbort.ops.rope import qk_norm_rope
from turbort.ops.sla import sla_attention

OPS: Mapping[str, OpSpec] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            linear,
            attention,
            sla_attention,
            norm_modulate,
            layer_norm,
            rms_norm,
            gated_residual,
            gated_residual_norm_modulate,
            qk_norm_rope,
            gelu_quant,
            quantize,
            quantize_time,
            patchify,
            unpatchify,
            causal_conv3d,
            vae_norm_silu,
            vae_upsample,
        )
    }
)
"""The built-in ops by name."""

__all__ = [
    "OPS",
    "attention",
    "block_map",
    "causal_conv3d",
    "gated_residual",
    "gated_residual_norm_modulate",
    "gelu_quant",
    "layer_norm",
    "linear",
    "norm_modulate",
    "patchify",
    "qk_norm_rope",
    "quantize",
    "quantize_time",
    "rms_norm",
    "sla_attention",
    "unpatchify",
    "vae_norm_silu",
    "vae_upsample",
]
