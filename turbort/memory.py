"""How many bytes each stage of a run needs, from the plan alone. `memory_ladder` chooses what to keep where so that they fit.

Counted exactly: weights in the precision of their sites, the text's keys and values, the frames that the VAE remembers.
Estimated: activations, as the tensors that are alive together at the widest place of a block. What a kernel allocates for
itself, and what an allocator rounds up, is covered by `MARGIN`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from turbort.memory_sites import dit_activations, encodes, text_bytes, vae_activations, vae_caches, weight_bytes
from turbort.precision import PRECISIONS
from turbort.units import format_bytes

if TYPE_CHECKING:
    from turbort.backend import Device
    from turbort.models.spec import ModelSpec
    from turbort.plan import Plan
    from turbort.profile import Profile

MARGIN = 1.05
"""Predictions are multiplied by this before they are compared with a budget."""
CAPTURED = 2
"""Tensors of the latents' size that a captured step keeps besides: its input and its output."""
DECODE_PIXELS = 2**22
"""Video pixels decoded at once where memory allows; larger chunks reread fewer cached frames."""
STATES = {"unipc": 7}
"""Tensors of the latents' size that a sampler holds at once, in float32; 3 (state, velocity, estimate) for the others."""
INFLIGHT_BLOCKS = 2
"""Blocks on the device at once when they are streamed from the host: the one that runs and the one that comes."""


@dataclass(frozen=True)
class Residency:
    """What stays on the device and when.

    Attributes:
        text: `freed` after every use, or `first`: used and freed before the transformer is loaded.
        text_scheme: QTensor scheme of the text encoder's matrices, or None for its own precision.
        experts: `all` on the device, or `swap`: one at a time.
        offload: whether the transformer's blocks stay on the host and pass through the device one after the other.
        chunk: latent frames decoded at once.
        batch: samples per call of the transformer.
        tile: height and width in pixels of the parts that are decoded one by one, or None for whole frames.
    """

    text: str = "freed"
    text_scheme: str | None = None
    experts: str = "all"
    offload: bool = False
    chunk: int = 1
    batch: int = 1
    tile: tuple[int, int] | None = None

    def describe(self, spec: ModelSpec) -> str:
        """One line for people."""
        parts = ["text encoder " + ("before the transformer is loaded" if self.text == "first" else "freed after use")]
        parts += [f"text encoder in {self.text_scheme}"] if self.text_scheme else []
        parts += [f"experts {'one at a time' if self.experts == 'swap' else 'both resident'}"] if spec.experts else []
        parts += ["blocks streamed from the host"] if self.offload else []
        parts += [f"VAE tiles of {self.tile[1]}x{self.tile[0]} pixels"] if self.tile else []
        return ", ".join([*parts, f"VAE {self.chunk} latent frames at once", f"batch {self.batch}"])


@dataclass(frozen=True)
class Stage:
    """Bytes of one stage: weights on the device, tensors kept between calls, and the widest moment's activations.

    `reserved` is what a captured step keeps from everybody else although no tensor lies in it: it counts against the device,
    and allocators that report tensors do not show it.
    """

    name: str
    weights: int
    kept: int
    activations: int
    reserved: int = 0

    @property
    def allocated(self) -> int:
        """The tensors of the widest moment: what an allocator reports as its peak."""
        return self.weights + self.kept + self.activations

    @property
    def peak(self) -> int:
        return self.allocated + self.reserved

    def row(self) -> dict[str, str]:
        """The stage as a line of a table."""
        sizes = {"weights": self.weights, "kept": self.kept, "activations": self.activations, "peak": self.peak}
        sizes |= {"kept": self.kept + self.reserved} if self.reserved else {}
        return {"stage": self.name, **{key: format_bytes(value) for key, value in sizes.items()}}


@dataclass(frozen=True)
class Forecast:
    """The stages under one residency; `budget` is what they had to fit, or None."""

    stages: tuple[Stage, ...]
    residency: Residency
    budget: int | None = None

    @property
    def peak(self) -> int:
        return max(stage.peak for stage in self.stages)

    @property
    def needed(self) -> int:
        """The peak with its margin."""
        return round(self.peak * MARGIN)

    def stage(self, name: str) -> Stage:
        """The stage of that name; the widest one for a stage that this model does not have."""
        return next((stage for stage in self.stages if stage.name == name), max(self.stages, key=lambda stage: stage.peak))

    @property
    def fits(self) -> bool:
        return self.budget is None or self.needed <= self.budget

    def plus(self, weights: int) -> Forecast:
        """The forecast with this many more bytes of resident weights."""
        return replace(self, stages=tuple(replace(stage, weights=stage.weights + weights) for stage in self.stages))

    def as_data(self) -> dict[str, Any]:
        """The forecast as plain data."""
        parts = ("weights", "kept", "activations", "reserved", "allocated", "peak")
        stages = [{"stage": stage.name, **{part: getattr(stage, part) for part in parts}} for stage in self.stages]
        residency = {name: getattr(self.residency, name) for name in Residency.__dataclass_fields__}
        return {"stages": stages, "peak": self.peak, "needed": self.needed, "budget": self.budget, "residency": residency}


def budget_of(device: Device, profile: Profile, asked: int | None = None) -> int | None:
    """Bytes that a run may use: what was asked, else the device's memory, less the profile's reserve; None when unknown."""
    total = asked if asked is not None else device.memory
    return None if total is None else max(0, total - (profile.memory.reserve or 0))


def tiered(profile: Profile, memory: int | None) -> Profile:
    """The profile with quantised weights where the device is below `memory.tier_boundary`; itself otherwise.

    Above the boundary the profile's own word holds, so an unquantised choice stays one.
    """
    linear = profile.precision.linear
    if not tiered_below(profile, memory) or PRECISIONS[linear.max].kind != "float":
        return profile
    quantised = linear.model_copy(update={"max": "w8a8", "min": "w8a8"})
    return profile.model_copy(update={"precision": profile.precision.model_copy(update={"linear": quantised})})


def tiered_below(profile: Profile, memory: int | None) -> bool:
    """Whether quantised files are the rule: below `memory.tier_boundary`."""
    boundary = profile.memory.tier_boundary
    return boundary is not None and memory is not None and memory < boundary


def forecast(plan: Plan, spec: ModelSpec, profile: Profile, residency: Residency | None = None) -> Forecast:
    """The bytes of every stage under `residency` (default: the fastest)."""
    chosen = residency or fastest(plan, spec, profile.memory.vae_tile)
    weights = weight_bytes(plan, spec, profile)
    dit, blocks = weights.dit, weights.blocks
    copies = len(spec.experts) if spec.experts and chosen.experts == "all" else 1
    largest = blocks // max(spec.dit.layers, 1)
    resident = (dit - blocks + INFLIGHT_BLOCKS * largest if chosen.offload else dit) * copies
    scale = chosen.batch / max(1, int(plan.header["batch"]))
    text = text_bytes(spec, profile, chosen.text_scheme)
    beside = 0 if chosen.text == "first" else resident + weights.vae
    latents = _latents(plan, spec)
    width, height = plan.header["size"]
    part = min(1.0, chosen.tile[0] * chosen.tile[1] / (width * height)) if chosen.tile else 1.0
    frames = spec.latent_shape(width, height, plan.header["frames"])[1]
    captured = plan.header.get("graph") == "captured" and not chosen.offload
    keys = _keys_values(spec, profile, chosen.batch)
    # A captured step has its own copies of its inputs and output, from its first call to the session's end.
    own = keys + CAPTURED * latents * chosen.batch if captured else 0
    step = round(dit_activations(plan, token_time=spec.dit.token_time and encodes(plan, spec)) * scale)
    decoded = round(vae_caches(plan) * part) + latents * chosen.batch
    there = resident + weights.vae
    stages = [
        Stage("load", there, 0, weights.widest),
        Stage("text", beside + text.weights, 0, text.activations),
        Stage("sample", there, keys + own, step + STATES.get(spec.sampler, 3) * latents * chosen.batch),
        Stage("decode", there, decoded + own, round(vae_activations(plan, chosen.chunk, frames) * part), step if captured else 0),
    ]
    if encodes(plan, spec):
        stages.insert(2, Stage("image", there, vae_caches(plan), vae_activations(plan, 1, frames)))
    return Forecast(tuple(stages), chosen)


def _latents(plan: Plan, spec: ModelSpec) -> int:
    """float32 latents of one sample."""
    width, height = plan.header["size"]
    channels, t, h, w = spec.latent_shape(width, height, plan.header["frames"])
    return 4 * channels * t * h * w


def _keys_values(spec: ModelSpec, profile: Profile, batch: int) -> int:
    """Keys and values of the text (and the image) for every block, for both passes of guidance."""
    batch = max(batch, 2) if spec.preset.guidance != 1.0 else batch
    width = 4 if profile.precision.compute == "fp32" else 2
    tokens = spec.dit.text_len + (spec.image_tokens if spec.dit.image_embed else 0)
    whole = 2 * batch * tokens * spec.dit.dim * spec.dit.layers
    if profile.memory.activation_cache.startswith("int8"):
        return whole + 4 * whole // spec.dit.head_dim  # codes, and a float32 scale per token and head
    return whole * width


def fastest(plan: Plan, spec: ModelSpec, tile: tuple[int, int] | None = None) -> Residency:
    """Everything resident but the text encoder, chunks as large as they are useful, the batch that was planned."""
    width, height = plan.header["size"]
    frames = spec.latent_shape(width, height, plan.header["frames"])[1]
    chunk = max(1, min(frames, DECODE_PIXELS // (spec.vae.stride[0] * width * height)))
    return Residency(chunk=chunk, batch=int(plan.header["batch"]), tile=tile)
