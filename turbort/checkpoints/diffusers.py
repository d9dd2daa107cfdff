"""Names as in diffusers' `WanTransformer3DModel` and `AutoencoderKLWan`, and back."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from turbort.checkpoints.dialect import Naming

Table = Sequence[tuple[str, str]]

# (diffusers, Wan); no left side is the start of another.
ROOT: Table = (
    ("condition_embedder.time_embedder.linear_1.", "time_embedding.0."),
    ("condition_embedder.time_embedder.linear_2.", "time_embedding.2."),
    ("condition_embedder.text_embedder.linear_1.", "text_embedding.0."),
    ("condition_embedder.text_embedder.linear_2.", "text_embedding.2."),
    ("condition_embedder.time_proj.", "time_projection.1."),
    ("condition_embedder.image_embedder.norm1.", "img_emb.proj.0."),
    ("condition_embedder.image_embedder.ff.net.0.proj.", "img_emb.proj.1."),
    ("condition_embedder.image_embedder.ff.net.2.", "img_emb.proj.3."),
    ("condition_embedder.image_embedder.norm2.", "img_emb.proj.4."),
    ("condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos"),
    ("scale_shift_table", "head.modulation"),
    ("proj_out.", "head.head."),
)
BLOCK: Table = (
    ("scale_shift_table", "modulation"),
    ("attn1.to_q.", "self_attn.q."),
    ("attn1.to_k.", "self_attn.k."),
    ("attn1.to_v.", "self_attn.v."),
    ("attn1.to_out.0.", "self_attn.o."),
    ("attn1.norm_q.", "self_attn.norm_q."),
    ("attn1.norm_k.", "self_attn.norm_k."),
    ("attn1.attn_impl.proj_l.", "self_attn.attn_op.local_attn.proj_l."),  # as FastVideo's converter names SLA's projection
    ("attn2.to_q.", "cross_attn.q."),
    ("attn2.to_k.", "cross_attn.k."),
    ("attn2.to_v.", "cross_attn.v."),
    ("attn2.to_out.0.", "cross_attn.o."),
    ("attn2.norm_q.", "cross_attn.norm_q."),
    ("attn2.norm_k.", "cross_attn.norm_k."),
    ("attn2.add_k_proj.", "cross_attn.k_img."),
    ("attn2.add_v_proj.", "cross_attn.v_img."),
    ("attn2.norm_added_k.", "cross_attn.norm_k_img."),
    ("norm2.", "norm3."),  # the affine norm before cross-attention is the third in Wan's count and the second in diffusers'
    ("ffn.net.0.proj.", "ffn.0."),
    ("ffn.net.2.", "ffn.2."),
)
VAE: Table = (
    ("quant_conv.", "conv1."),
    ("post_quant_conv.", "conv2."),
    *((f"{side}.{left}", f"{side}.{right}") for side in ("encoder", "decoder") for left, right in (
        ("conv_in.", "conv1."),
        ("norm_out.", "head.0."),
        ("conv_out.", "head.2."),
        ("mid_block.attentions.0.", "middle.1."),
        ("mid_block.resnets.0.", "middle.0."),
        ("mid_block.resnets.1.", "middle.2."),
    )),
)  # fmt: skip
RESNET: Table = (
    ("norm1.", "residual.0."),
    ("conv1.", "residual.2."),
    ("norm2.", "residual.3."),
    ("conv2.", "residual.6."),
    ("conv_shortcut.", "shortcut."),
)
_BLOCK_NAME = re.compile(r"(blocks\.\d+\.)(.+)", re.DOTALL)
_VAE_LEVEL = re.compile(r"(encoder\.down|decoder\.up)_blocks\.(\d+)\.(?:resnets\.(\d+)\.)?(.+)", re.DOTALL)
_RESAMPLER = re.compile(r"(?:upsamplers\.0|upsampler|downsampler)\.(.+)", re.DOTALL)


def _swap(name: str, table: Table) -> str:
    for left, right in table:
        if name.startswith(left):
            return right + name.removeprefix(left)
    return name


def dit_to_wan(name: str) -> str:
    """`blocks.3.attn1.to_q.weight` -> `blocks.3.self_attn.q.weight`; names it does not know stay as they are."""
    inside = _BLOCK_NAME.fullmatch(name)
    return inside[1] + _swap(inside[2], BLOCK) if inside else _swap(name, ROOT)


def dit_to_diffusers(name: str) -> str:
    """`blocks.3.self_attn.q.weight` -> `blocks.3.attn1.to_q.weight`; the inverse of `dit_to_wan`."""
    inside = _BLOCK_NAME.fullmatch(name)
    table = BLOCK if inside else ROOT
    back = [(right, left) for left, right in table]
    return inside[1] + _swap(inside[2], back) if inside else _swap(name, back)


def vae_to_wan(names: Collection[str]) -> Mapping[str, str]:
    """Every name of an `AutoencoderKLWan` and its name in Wan's files.

    Wan 2.1 numbers the layers of all levels in one row, so a layer's number depends on how many the levels before it have;
    Wan 2.2 (recognised by `upsampler` or `downsampler`) numbers them per level.
    """
    nested = any(".downsampler." in name or ".upsampler." in name for name in names)
    resnets, resampled = _count_layers(names)
    result = {}
    for name in names:
        found = _VAE_LEVEL.fullmatch(name)
        result[name] = _vae_level(found, nested, resnets, resampled) if found else _vae_rest(name)
    return result


def _vae_rest(name: str) -> str:
    swapped = _swap(name, VAE)
    for block in ("encoder.middle.0.", "encoder.middle.2.", "decoder.middle.0.", "decoder.middle.2."):
        if swapped.startswith(block):
            return block + _swap(swapped.removeprefix(block), RESNET)
    return swapped


def _count_layers(names: Collection[str]) -> tuple[Counter[tuple[str, int]], set[tuple[str, int]]]:
    """Residual blocks per (side, level), and the levels that end in a resampler."""
    resnets: Counter[tuple[str, int]] = Counter()
    resampled = set()
    for name in names:
        found = _VAE_LEVEL.fullmatch(name)
        if found is None:
            continue
        level = found[1], int(found[2])
        if found[3] is not None:
            resnets[level] = max(resnets[level], int(found[3]) + 1)
        elif _RESAMPLER.fullmatch(found[4]):
            resampled.add(level)
    return resnets, resampled


def _vae_level(found: re.Match[str], nested: bool, resnets: Counter[tuple[str, int]], resampled: set[tuple[str, int]]) -> str:
    side, level, position, rest = found[1], int(found[2]), found[3], found[4]
    stem = f"{side}samples"
    if side.startswith("encoder") and not nested:
        return f"{stem}.{level}.{_swap(rest, RESNET)}"  # already in one row
    index = int(position) if position is not None else resnets[side, level]
    if nested:
        stem = f"{stem}.{level}.{side.rpartition('.')[2]}samples"
    else:
        index += sum(resnets[side, before] + ((side, before) in resampled) for before in range(level))
    resampler = _RESAMPLER.fullmatch(rest) if position is None else None
    return f"{stem}.{index}.{resampler[1] if resampler else _swap(rest, RESNET)}"


def _is_dit(names: Collection[str]) -> bool:
    return any(name.startswith("condition_embedder.") for name in names)


def _is_vae(names: Collection[str]) -> bool:
    return any(name.startswith(("encoder.conv_in.", "decoder.conv_in.", "quant_conv.", "post_quant_conv.")) for name in names)


def _dit(names: Collection[str]) -> Mapping[str, str]:
    return {name: dit_to_wan(name) for name in names}


DIT_NAMES = Naming("diffusers", _is_dit, _dit)
VAE_NAMES = Naming("diffusers-vae", _is_vae, vae_to_wan)
