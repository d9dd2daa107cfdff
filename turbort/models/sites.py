"""The call sites of a whole model at one size: what the planner plans, found by running the model on meta."""

from __future__ import annotations

from typing import Literal, Protocol

import torch

from turbort.kernel import Call
from turbort.models.spec import ModelSpec, Sla
from turbort.models.vae import build_vae
from turbort.models.wan_dit import WanDit
from turbort.record import record


class AttentionWish(Protocol):
    """The part of a profile that says which keys a query sees."""

    @property
    def kind(self) -> Literal["sla", "dense"]: ...
    @property
    def topk(self) -> float: ...
    @property
    def block(self) -> tuple[int, int]: ...


def self_attention(spec: ModelSpec, wish: AttentionWish) -> Sla | None:
    """The self-attention a run uses: SLA needs weights trained for it, so a dense model stays dense.

    A model trained for SLA that is asked to run dense keeps its linear branch and attends to every key block.
    """
    if spec.dit.sla is None:
        return None
    return Sla(wish.topk, wish.block) if wish.kind == "sla" else Sla(1.0, wish.block)


def build_dit(spec: ModelSpec, wish: AttentionWish) -> WanDit:
    """The transformer on meta, in inference mode."""
    with torch.device("meta"):
        return WanDit(spec.dit, self_attention(spec, wish)).requires_grad_(False).eval()


def record_dit(
    spec: ModelSpec, *, attention: AttentionWish, dtype: str, width: int, height: int, frames: int, batch: int
) -> list[list[Call]]:
    """Distinct calls per site of the transformer (`dit/...`)."""
    compute, channels = getattr(torch, dtype), spec.latent_shape(width, height, frames)
    dit = build_dit(spec, attention)
    for name, parameter in dit.named_parameters():
        if not any(part in name for part in WanDit.fp32):
            parameter.data = parameter.data.to(compute)
    dense = spec.dit
    x = torch.empty(batch, dense.in_channels, *channels[1:], device="meta", dtype=compute)
    time = torch.empty(batch, device="meta")
    text = torch.empty(batch, dense.text_len, dense.text_dim, device="meta", dtype=compute)
    tokens = torch.empty(batch, spec.image_tokens, dense.image_dim, device="meta", dtype=compute) if dense.image_embed else None
    return record(dit, lambda: dit(x, time, text, image=tokens), "dit")


def record_model(
    spec: ModelSpec,
    *,
    attention: AttentionWish,
    dtype: str,
    vae_dtype: str,
    width: int,
    height: int,
    frames: int,
    batch: int,
    image: bool = False,
) -> list[list[Call]]:
    """Distinct calls per site of the transformer (`dit/...`) and the video decoder (`vae/...`).

    `image` records the video encoder, too, for a model that can do without it; one that continues images always has it.
    """
    channels = spec.latent_shape(width, height, frames)
    sites = record_dit(spec, attention=attention, dtype=dtype, width=width, height=height, frames=frames, batch=batch)
    with torch.device("meta"):
        vae = build_vae(spec.vae).requires_grad_(False).eval().to(getattr(torch, vae_dtype))
    # Three latent frames show every shape that a streaming decoder meets: the first, the second and a later chunk.
    latents = torch.empty(batch, channels[0], min(3, channels[1]), *channels[2:], device="meta", dtype=getattr(torch, vae_dtype))
    sites += record(vae, lambda: list(vae.decode_stream(latents)), "vae")
    if spec.task != "i2v" and not image:
        return sites
    # The encoder of an image-to-video run meets its last shapes in the third chunk, too; TI2V encodes the picture alone.
    seen = min(frames, 9) if spec.task == "i2v" else 1
    clip = torch.empty(1, 3, seen, height, width, device="meta", dtype=getattr(torch, vae_dtype))
    return sites + record(vae, lambda: list(vae.encode_stream(clip)), "vae")
