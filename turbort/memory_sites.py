"""Bytes of weights and activations, read off a plan's call sites and off models built on meta."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from turbort.precision import PRECISIONS

if TYPE_CHECKING:
    from turbort.models.spec import ModelSpec
    from turbort.plan import Choice, Plan
    from turbort.profile import Profile

GROUP, BLOCK = 128, 128


@dataclass(frozen=True)
class Weights:
    """Bytes of the transformer (one expert), of its blocks alone, of the VAE, and of the widest single weight in float32."""

    dit: int
    blocks: int
    vae: int
    widest: int


@dataclass(frozen=True)
class Text:
    """Bytes of the text encoder and of its activations for one prompt."""

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


def weight_bytes(plan: Plan, spec: ModelSpec, profile: Profile) -> Weights:
    """What loading puts on the device, parameter by parameter."""
    import torch

    from turbort.models.sites import build_dit
    from turbort.models.vae import build_vae
    from turbort.models.wan_dit import WanDit

    compute, vae = float_bytes(profile.precision.compute), float_bytes(profile.precision.vae)
    sites = {choice.path: choice for choice in plan if choice.path.startswith("dit/")}
    total = blocks = widest = 0
    for name, parameter in build_dit(spec, profile.attention).named_parameters():
        owner, _, leaf = name.rpartition(".")
        choice = sites.get(f"dit/{owner}.op")
        if choice is not None and choice.op == "linear" and leaf == "weight":
            size = matrix_bytes(tuple(parameter.shape), choice.precision, choice.kernel, compute)
        else:
            wide = any(part in name for part in WanDit.fp32)
            size = parameter.numel() * (4 if wide else compute)
        total += size
        blocks += size if name.startswith("blocks.") else 0
        widest = max(widest, 4 * parameter.numel())
    with torch.device("meta"):
        vae_total = sum(parameter.numel() for parameter in build_vae(spec.vae).parameters()) * vae
    return Weights(total, blocks, vae_total, widest)


def dit_activations(plan: Plan, spec: ModelSpec) -> int:
    """The widest moment of a block: residual stream, norm's output, and q, k, v and output or both feed-forward halves.

    In a block of width D and feed-forward width F over L tokens these are 6 L D at attention and 2 L D + 2 L F at GELU.
    """
    moments = [0]
    stream = 0
    for choice in plan:
        if not choice.path.startswith("dit/blocks."):
            continue
        shapes = [parse_shape(text) for text in choice.shapes]
        width = _activation_bytes(choice, plan)
        if choice.role == "self.qkv":
            stream = max(stream, prod(shapes[0]) * width)
        if choice.role == "attn.self":
            moments.append(4 * prod(shapes[0]) * width + _sla_maps(choice, shapes))
        elif choice.role == "ffn.in":
            hidden = prod(shapes[0][:-1]) * shapes[1][0] * width
            emitted = next((c.emit for c in plan if c.role == "ffn.gelu"), None)
            moments.append(hidden + (hidden // width if emitted else hidden))
    return 2 * stream + max(moments)


def _activation_bytes(choice: Choice, plan: Plan) -> int:
    return float_bytes(str(plan.header.get("compute", "bf16")))


def _sla_maps(choice: Choice, shapes: list[tuple[int, ...]]) -> int:
    """Block scores and the chosen blocks of SLA, float32, per head."""
    if choice.op != "sla_attention":
        return 0
    batch, length, heads, _ = shapes[0]
    return 8 * batch * heads * -(-length // 64) * -(-length // 128)


def _convolutions(plan: Plan) -> Iterable[tuple[tuple[int, ...], tuple[int, ...], int]]:
    """Input and weight shapes of the decoder's convolutions, and bytes per value."""
    for choice in plan:
        if choice.path.startswith("vae/decoder") and choice.op in ("causal_conv3d", "vae_upsample"):
            shapes = [parse_shape(text) for text in choice.shapes]
            yield shapes[0], shapes[1], float_bytes(choice.precision)


def vae_caches(plan: Plan) -> int:
    """Two past frames per causal convolution of one clip."""
    total = 0
    for x, weight, width in _convolutions(plan):
        if len(weight) == 5 and weight[2] > 1:
            total += 2 * prod(x) // (x[0] * x[2]) * width
    return total


def vae_activations(plan: Plan, chunk: int) -> int:
    """The widest convolution of one clip: its input, the input with its past, the output and the shortcut beside it."""
    widest = 0
    for x, weight, width in _convolutions(plan):
        frame = prod(x) // (x[0] * x[1] * x[2])
        frames = x[2] * chunk
        if len(weight) == 5:
            values = frame * (x[1] * frames + x[1] * (frames + 2) + 2 * weight[0] * frames)
        else:
            values = frame * frames * (x[1] + 4 * weight[0] + 4 * x[1])
        widest = max(widest, values * width)
    return widest


def text_bytes(spec: ModelSpec, profile: Profile, scheme: str | None) -> Text:
    """The umT5 encoder as it is loaded: matrices in `scheme` or the profile's precision, the rest in floats."""
    import torch

    from turbort.models.layers import Linear
    from turbort.models.umt5 import Umt5

    named = PRECISIONS[profile.precision.text]
    scheme = scheme or named.weight_scheme
    floats = float_bytes(named.name if named.kind == "float" else profile.precision.compute)
    with torch.device("meta"):
        model = Umt5(spec.text)
    matrices = sum(module.weight.numel() for module in model.modules() if isinstance(module, Linear))
    every = sum(parameter.numel() for parameter in model.parameters())
    weights = every * floats if scheme is None else (every - matrices) * floats + matrices
    length, config = min(spec.text.text_len, spec.dit.text_len), spec.text
    # Scores and their softmax in float32 beside q, k, v, the residual and both halves of the gated feed-forward.
    scores = 2 * 4 * config.heads * length * length
    rows = floats * length * (5 * config.dim + 3 * config.ffn_dim)
    return Text(weights, scores + rows)
