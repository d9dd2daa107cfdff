"""The text encoder, in Wan's names and in those of Hugging Face, which turbort uses because transformers computes it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from turbort.checkpoints.dialect import Naming

ROOT = {
    "token_embedding.weight": "shared.weight",
    "norm.weight": "encoder.final_layer_norm.weight",
}
BLOCK = {
    "norm1.": "layer.0.layer_norm.",
    "attn.q.": "layer.0.SelfAttention.q.",
    "attn.k.": "layer.0.SelfAttention.k.",
    "attn.v.": "layer.0.SelfAttention.v.",
    "attn.o.": "layer.0.SelfAttention.o.",
    "pos_embedding.embedding.": "layer.0.SelfAttention.relative_attention_bias.",
    "norm2.": "layer.1.layer_norm.",
    "ffn.gate.0.": "layer.1.DenseReluDense.wi_0.",
    "ffn.fc1.": "layer.1.DenseReluDense.wi_1.",
    "ffn.fc2.": "layer.1.DenseReluDense.wo.",
}
TIED = {"encoder.embed_tokens.weight": "shared.weight"}
_NATIVE = re.compile(r"blocks\.(\d+)\.(.+)", re.DOTALL)
_HF = re.compile(r"encoder\.block\.(\d+)\.(.+)", re.DOTALL)


def to_hf(name: str) -> str:
    """`blocks.0.attn.q.weight` -> `encoder.block.0.layer.0.SelfAttention.q.weight`; unknown names stay as they are."""
    inside = _NATIVE.fullmatch(name)
    if inside is None:
        return ROOT.get(name, name)
    for native, hf in BLOCK.items():
        if inside[2].startswith(native):
            return f"encoder.block.{inside[1]}.{hf}{inside[2].removeprefix(native)}"
    return name


def to_native(name: str) -> str:
    """The inverse of `to_hf`; the tied `encoder.embed_tokens.weight` becomes the token embedding too."""
    inside = _HF.fullmatch(name)
    if inside is None:
        stored = TIED.get(name, name)
        return next((native for native, hf in ROOT.items() if hf == stored), name)
    for native, hf in BLOCK.items():
        if inside[2].startswith(hf):
            return f"blocks.{inside[1]}.{native}{inside[2].removeprefix(hf)}"
    return name


def _is_native(names: Collection[str]) -> bool:
    return any(name == "token_embedding.weight" or ".pos_embedding.embedding." in name for name in names)


def _is_hf(names: Collection[str]) -> bool:
    return any(name.startswith(("encoder.block.", "shared.", "encoder.embed_tokens.")) for name in names)


def _to_hf(names: Collection[str]) -> Mapping[str, str]:
    return {name: to_hf(name) for name in names}


def _same(names: Collection[str]) -> Mapping[str, str]:
    return {name: name for name in names}


NATIVE = Naming("umt5", _is_native, _to_hf, TIED)
HF = Naming("umt5-hf", _is_hf, _same, TIED)
