"""Which part of a model a weight belongs to, from its name alone."""

from __future__ import annotations

import re

# The first that matches is taken; names are those of turbort's models.
_ROLES: tuple[tuple[str, str], ...] = (
    (r"blocks\.\d+\.self_attn\.[qkv]\.", "self.qkv"),
    (r"blocks\.\d+\.self_attn\.o\.", "self.out"),
    (r"blocks\.\d+\.cross_attn\.q\.", "cross.q"),
    (r"blocks\.\d+\.cross_attn\.[kv](_img)?\.", "cross.kv"),
    (r"blocks\.\d+\.cross_attn\.o\.", "cross.out"),
    (r"blocks\.\d+\.ffn\.0\.", "ffn.in"),
    (r"blocks\.\d+\.ffn\.2\.", "ffn.out"),
    (r".*\.proj_l\.", "attn.self"),
    (r"(blocks\.\d+|head)\.modulation", "modulation"),
    (r"blocks\.\d+\..*norm", "norm"),
    (r"(patch|text)_embedding\.|img_emb\.", "embed"),
    (r"time_(embedding|projection)\.", "time"),
    (r"head\.head\.", "head"),
    (r"encoder\.block\.\d+\.layer\.\d+\.SelfAttention\.[qkvo]\.", "text.attention"),
    (r"encoder\.block\.\d+\.layer\.\d+\.DenseReluDense\.", "text.ffn"),
    (r"shared\.|encoder\.(block|final_layer_norm|embed_tokens)\b", "text"),
    (r"visual\.|vision_model\.", "image"),
    (r"(encoder|decoder|conv[12])\.", "vae"),
)
_QUANTISED = re.compile(r"(self|cross|ffn)\.|text\.(attention|ffn)")
_COMPILED = [(re.compile(pattern, re.DOTALL), role) for pattern, role in _ROLES]


def role_of(name: str) -> str:
    """`blocks.3.ffn.0.weight` -> `ffn.in`; `other` for names that no model of turbort has."""
    return next((role for pattern, role in _COMPILED if pattern.match(name)), "other")


def may_quantise(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a weight is a matrix of a block: what TurboDiffusion, LightX2V and turbort store in 8 or 4 bits."""
    matrix = len(shape) == 2 and name.endswith(".weight") and "norm" not in name
    return matrix and bool(_QUANTISED.match(role_of(name)))
