"""Bytes of weights and activations, read off a plan's call sites and off models built on meta."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any

from turbort.precision import PRECISIONS

if TYPE_CHECKING:
    from turbort.models.config import DitConfig, TextConfig, VaeConfig
    from turbort.models.spec import ModelSpec, Sla
    from turbort.plan import Choice, Plan
    from turbort.profile import Profile

GROUP, BLOCK = 128, 128
SLA_BLOCK = (64, 128)
CODES = {"int8": 1, "int8-fp8": 2}
"""8-bit copies of the keys, or of keys and values, that attention makes at these precisions."""
ROUNDING = 8
"""Bytes per value beside a float weight while its codes are made: float32 magnitudes, or quotients and their rounded form."""
QUANTISING = 13
"""Bytes per value while a weight is brought into its scheme: stored codes, their scales spread out, and two float32 copies."""
EPILOGUE = {2: 12, 4: 8}
"""Bytes per value, by the width of a value, while torch adds a linear's gate and residual: float32 of the gated product, of the
residual and of their sum."""
GATHERED = 1 << 26
"""Elements of keys (and of values) that the reference's sparse attention gathers at once."""


@dataclass(frozen=True)
class Weights:
    """Bytes of the transformer (one expert), of its blocks alone, and of the VAE; and what the widest weight takes while it
    is quantised."""

    dit: int
    blocks: int
    vae: int
    widest: int


@dataclass(frozen=True)
class Text:
    """Bytes of the text encoder, and the most beside it: a prompt's activations, or its widest matrix while it is quantised."""

    weights: int
    activations: int


def parse_shape(text: str) -> tuple[int, ...]:
    """`1x576x256` -> (1, 576, 256)."""
    return () if text == "scalar" else tuple(int(part) for part in text.split("x"))


def float_bytes(precision: str) -> int:
    """Bytes per value of a float precision; the compute dtype's two for others."""
    return 4 if precision == "fp32" else 2


def matrix_bytes(shape: tuple[int, ...], precision: str, kernel: str = "", floats: int = 2) -> int:
    """A weight with its scales in `precision`; the reference keeps a byte per 4-bit code, kernels pack two into one."""
    count, rows = prod(shape), shape[0]
    scheme = PRECISIONS[precision].weight_scheme
    if scheme is None:
        return count * (float_bytes(precision) if PRECISIONS[precision].kind == "float" else floats)
    columns = count // max(rows, 1)
    codes = count if PRECISIONS[precision].weight_bits == 8 or kernel.startswith("reference/") else count // 2
    if scheme == "int8-block128":
        return codes + 4 * -(-rows // BLOCK) * -(-columns // BLOCK)
    if scheme == "int4-group128":
        return codes + 4 * rows * -(-columns // GROUP)
    if scheme.startswith("bsq"):
        return codes + 4 * -(-rows // 8) * -(-columns // 8)
    return codes + 4 * rows


def encodes(plan: Plan, spec: ModelSpec) -> bool:
    """Whether the run encodes an image, so that the VAE's encoder is loaded, too."""
    return spec.task == "i2v" or bool(plan.header.get("image"))


def weight_bytes(plan: Plan, spec: ModelSpec, profile: Profile) -> Weights:
    """What loading puts on the device, parameter by parameter."""
    from turbort.models.sites import self_attention
    from turbort.models.wan_dit import WanDit

    compute, vae = float_bytes(profile.precision.compute), float_bytes(profile.precision.vae)
    sites = {choice.path: choice for choice in plan if choice.path.startswith("dit/")}
    total = blocks = widest = 0
    for name, shape in _dit_shapes(spec.dit, self_attention(spec, profile.attention)):
        values = prod(shape)
        owner, _, leaf = name.rpartition(".")
        choice = sites.get(f"dit/{owner}.op")
        made = 0
        if choice is not None and choice.op == "linear" and leaf == "weight":
            size = matrix_bytes(shape, choice.precision, choice.kernel, compute)
            made = QUANTISING if PRECISIONS[choice.precision].weight_scheme else 0
        else:
            wide = any(part in name for part in WanDit.fp32)
            size = values * (4 if wide else compute)
        total += size
        blocks += size if name.startswith("blocks.") else 0
        widest = max(widest, made * values)
    decoder, whole = _vae_values(spec.vae)
    vae_total = (whole if encodes(plan, spec) else decoder) * vae
    return Weights(total, blocks, vae_total, widest)


def dit_activations(plan: Plan, *, token_time: bool = False) -> int:
    """The widest moment of a block, and what lives through all of them (the rotation's tables).

    In a block of width D and feed-forward width F over L tokens, w bytes a value, e bytes where a norm hands over 8 bits:
    at attention the stream, the norm's output, q, k, v and the result, L D (5 w + e), and what the kernel makes of k and v;
    at GELU the stream before and after attention, the norm's output and both halves, L D (2 w + e) + L F (w + e);
    at the second linear of the feed-forward, where its gate and residual are added by torch, the same streams, one half, and
    what `EPILOGUE` says.
    `token_time`: the modulation of every token, once for the model and once with the block's own, and the embedding.
    """
    width = float_bytes(str(plan.header.get("compute", "bf16")))
    sites = [choice for choice in plan if choice.path.startswith("dit/blocks.")]
    norm = next((c for c in sites if c.role == "norm" and c.op == "norm_modulate"), None)
    handed = 1 if norm is not None and norm.emit else width
    moments, stream, tables, tokens = [0], 0, 0, 0
    for choice in sites:
        shapes = [parse_shape(text) for text in choice.shapes]
        if choice.role == "self.qkv":
            tokens = prod(shapes[0])
            stream = tokens * width
        elif choice.role == "attn.self":
            moments.append(5 * stream + handed * tokens + _attention_extra(choice, shapes, plan.header["attention"]))
            tables = 4 * shapes[0][1] * shapes[0][3]
        elif choice.role == "ffn.in":
            gelu = next((c for c in sites if c.role == "ffn.gelu"), None)
            hidden = prod(shapes[0][:-1]) * shapes[1][0]
            moments.append(2 * stream + handed * tokens + hidden * _gelu_width(gelu, width))
        elif choice.role == "ffn.out" and len(shapes) > 3 and choice.kernel.endswith("/torch"):
            moments.append(2 * stream + handed * tokens + prod(shapes[0]) * width + EPILOGUE[width] * tokens)
    return max(moments) + tables + (13 * 4 * tokens if token_time else 0)


def _gelu_width(choice: Choice | None, width: int) -> int:
    """Bytes per value of GELU's argument, its result, and what the reference holds between them in float32."""
    emits = choice is not None and choice.emit is not None
    # Scales shared along time: the plain result is there beside its codes.
    shared = width if choice is not None and choice.time_scales else 0
    if choice is None or not is_reference(choice):
        return width + (1 if emits else width) + shared
    return (13 if emits else (8 if width == 4 else 10)) + shared


def _attention_extra(choice: Choice, shapes: list[tuple[int, ...]], wish: Mapping[str, Any]) -> int:
    """What the kernel makes for itself: 8-bit keys (and values at e4m3), SLA's block scores, the reference's floats."""
    batch, length, heads, dim = shapes[0]
    values = prod(shapes[0])
    codes = CODES.get(choice.precision, 0) * values
    if choice.op != "sla_attention":
        return codes
    rows, columns = map(int, wish.get("block", SLA_BLOCK))
    queries, keys = -(-length // rows), -(-length // columns)
    maps = 8 * batch * heads * queries * keys
    if not is_reference(choice):
        return codes + maps
    # The reference pads q, k and v into blocks, and gathers the chosen keys and values of as many query blocks as it may;
    # where every block is chosen it attends to all and keeps both feature maps and the linear branch's output instead.
    count = max(1, int(wish.get("topk", 1.0) * keys)) if wish.get("kind") == "sla" else keys
    if count >= keys and choice.precision not in CODES:
        return maps + 4 * 3 * values
    chosen = count * columns * dim * batch * heads
    gathered = chosen * min(queries, max(1, GATHERED // chosen))
    return maps + 4 * (3 * values + 2 * gathered)


def is_reference(choice: Choice) -> bool:
    """Whether the reference's kernel runs at this site."""
    return choice.kernel.startswith("reference/")


def text_bytes(spec: ModelSpec, profile: Profile, scheme: str | None) -> Text:
    """The umT5 encoder as it is loaded: matrices in `scheme` or the profile's precision, the rest in floats."""
    from turbort.models.text import AT_ONCE

    named = PRECISIONS[profile.precision.text]
    scheme = scheme or named.weight_scheme
    floats = float_bytes(named.name if named.kind == "float" else profile.precision.compute)
    matrices, every, widest = _text_values(spec.text)
    weights = every * floats if scheme is None else (every - matrices) * floats + matrices
    length, config = min(spec.text.text_len, spec.dit.text_len), spec.text
    # Scores and their softmax in float32 beside q, k, v, the residual and both halves of the gated feed-forward.
    scores = 2 * 4 * config.heads * length * length
    rows = floats * length * (5 * config.dim + 3 * config.ffn_dim)
    # The matrix as it is stored is there until its codes are; in parts, those are joined at last.
    at_once = min(widest, AT_ONCE) if scheme == "int8-channel" else widest
    quantising = 0 if scheme is None else max(floats * widest + ROUNDING * at_once, (floats + 1) * widest)
    return Text(weights, max(scores + rows, quantising))


# A choice among residencies asks for these again and again, and building a large model on meta takes a second.


@cache
def _dit_shapes(config: DitConfig, attention: Sla | None) -> tuple[tuple[str, tuple[int, ...]], ...]:
    import torch

    from turbort.models.wan_dit import WanDit

    with torch.device("meta"):
        return tuple((name, tuple(parameter.shape)) for name, parameter in WanDit(config, attention).named_parameters())


@cache
def _vae_values(config: VaeConfig) -> tuple[int, int]:
    """Values of the decoder's weights, and of all."""
    import torch

    from turbort.models.vae import build_vae

    with torch.device("meta"):
        model = build_vae(config)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return sum(size for name, size in sizes.items() if not name.startswith(model.encoding)), sum(sizes.values())


@cache
def _text_values(config: TextConfig) -> tuple[int, int, int]:
    """Values of the text encoder's matrices, of all its weights, and of its widest matrix."""
    import torch

    from turbort.models.layers import Linear
    from turbort.models.umt5 import Umt5

    with torch.device("meta"):
        model = Umt5(config)
    matrices = [module.weight.numel() for module in model.modules() if isinstance(module, Linear)]
    return sum(matrices), sum(parameter.numel() for parameter in model.parameters()), max(matrices)
