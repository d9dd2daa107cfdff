"""How many bytes each stage of a run needs, from the plan alone. `memory_ladder` chooses what to keep where so that they fit.

Counted exactly: weights in the precision of their sites, the text's keys and values, the frames that the VAE remembers.
Estimated: activations, as the tensors that are alive together at the widest place of a block; and what an allocator keeps and
cannot use, see `memory_beside`. What a kernel allocates for itself, and what an allocator rounds up, is covered by `MARGIN`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from turbort.memory_beside import Second, fragmented, sample_bytes, workspace
from turbort.memory_sites import dit_activations, encodes, float_bytes, text_bytes, weight_bytes
from turbort.memory_vae import vae_activations, vae_caches, vae_layouts
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
        eager: whether a step is launched kernel by kernel, where a captured one would keep memory for itself.
        offload: whether the transformer's blocks stay on the host and pass through the device one after the other.
        chunk: latent frames decoded at once.
        batch: samples per call of the transformer.
        tile: height and width in pixels of the parts that are decoded one by one, or None for whole frames.
    """

    text: str = "freed"
    text_scheme: str | None = None
    experts: str = "all"
    eager: bool = False
    offload: bool = False
    chunk: int = 1
    batch: int = 1
    tile: tuple[int, int] | None = None

    def describe(self, spec: ModelSpec) -> str:
        """One line for people."""
        parts = ["text encoder " + ("before the transformer is loaded" if self.text == "first" else "freed after use")]
        parts += [f"text encoder in {self.text_scheme}"] if self.text_scheme else []
        parts += [f"experts {'one at a time' if self.experts == 'swap' else 'both resident'}"] if spec.experts else []
        parts += ["steps not captured"] if self.eager else []
        parts += ["blocks streamed from the host"] if self.offload else []
        parts += [f"VAE tiles of {self.tile[1]}x{self.tile[0]} pixels"] if self.tile else []
        return ", ".join([*parts, f"VAE {self.chunk} latent frames at once", f"batch {self.batch}"])


@dataclass(frozen=True)
class Stage:
    """Bytes of one stage: weights on the device, tensors kept between calls, and the widest moment's activations.

    `captured` is what a captured step keeps from everybody else although no tensor lies in it, `fragmented` what the allocator
    has and cannot use: both count against the device, and allocators that report tensors do not show them.
    """

    name: str
    weights: int
    kept: int
    activations: int
    captured: int = 0
    fragmented: int = 0

    @property
    def allocated(self) -> int:
        """The tensors of the widest moment: what an allocator reports as its peak."""
        return self.weights + self.kept + self.activations

    @property
    def reserved(self) -> int:
        """What the device loses: what must fit into it."""
        return self.allocated + self.captured + self.fragmented

    def row(self) -> dict[str, str]:
        """The stage as a line of a table."""
        sizes = {"weights": self.weights, "kept": self.kept, "activations": self.activations}
        sizes |= {"unusable": self.captured + self.fragmented, "reserved": self.reserved}
        return {"stage": self.name, **{key: format_bytes(value) for key, value in sizes.items()}}


@dataclass(frozen=True)
class Forecast:
    """The stages under one residency; `budget` is what they had to fit, or None."""

    stages: tuple[Stage, ...]
    residency: Residency
    budget: int | None = None

    @property
    def peak(self) -> int:
        return max(stage.reserved for stage in self.stages)

    @property
    def needed(self) -> int:
        """The peak with its margin."""
        return round(self.peak * MARGIN)

    def stage(self, name: str) -> Stage:
        """The stage of that name; the widest one for a stage that this model does not have."""
        return next((stage for stage in self.stages if stage.name == name), max(self.stages, key=lambda stage: stage.reserved))

    @property
    def fits(self) -> bool:
        return self.budget is None or self.needed <= self.budget

    def as_data(self) -> dict[str, Any]:
        """The forecast as plain data."""
        parts = ("weights", "kept", "activations", "captured", "fragmented", "allocated", "reserved")
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


def forecast(
    plan: Plan, spec: ModelSpec, profile: Profile, residency: Residency | None = None, second: Second | None = None
) -> Forecast:
    """The bytes of every stage under `residency` (default: the fastest), with the `second` kernels of a run that loads them."""
    chosen, second = residency or fastest(plan, spec, profile.memory.vae_tile), second or Second()
    weights = weight_bytes(plan, spec, profile)
    dit, blocks = weights.dit + second.weights, weights.blocks
    copies = len(spec.experts) if spec.experts and chosen.experts == "all" else 1
    largest = blocks // max(spec.dit.layers, 1)
    resident = (weights.dit - blocks + INFLIGHT_BLOCKS * largest if chosen.offload else dit) * copies
    text = text_bytes(spec, profile, chosen.text_scheme)
    first = chosen.text == "first"
    captured = plan.header.get("graph") == "captured" and not (chosen.offload or chosen.eager)
    step = _step(plan, spec, chosen, second)
    # A captured step warms up on a stream of its own.
    library = workspace(plan) * (2 if captured else 1)
    samples = 0 if chosen.offload else sample_bytes(plan, profile) * copies
    latents = _latents(plan, spec) * chosen.batch
    keys = _keys_values(spec, profile, chosen.batch)
    # A captured step has its own copies of its inputs and output, from its first call to the session's end.
    own = samples + library + (keys + CAPTURED * latents if captured else 0)
    pool = step + fragmented(plan, step) if captured else 0
    caches, past, decoding = _decoding(plan, spec, profile, chosen)
    there = resident + weights.vae
    quantising = max(0, weights.widest - weights.vae - samples)
    before = (0, 0, 0) if first else (there, samples, pool)  # a session's later prompts come when a step was captured
    stages = [
        Stage("load", there, samples + (workspace(plan) if first else 0), quantising, 0, fragmented(plan, weights.widest)),
        Stage("text", before[0] + text.weights, before[1] + workspace(plan), text.activations, before[2],
              fragmented(plan, text.activations)),
        Stage("sample", there, keys + own, step + STATES.get(spec.sampler, 3) * latents, 0, fragmented(plan, step)),
        Stage("decode", there, caches + past + latents + own, decoding, pool, fragmented(plan, past + decoding)),
    ]  # fmt: skip
    if encodes(plan, spec):
        frames = _latent_frames(plan, spec)
        past, decoding = vae_caches(plan), vae_activations(plan, 1, frames)
        stages.insert(2, Stage("image", there, past + own, decoding, pool, fragmented(plan, past + decoding)))
    return Forecast(tuple(stages), chosen)


def _step(plan: Plan, spec: ModelSpec, chosen: Residency, second: Second) -> int:
    """Activations of one call of the transformer, whichever kernels its sites run."""
    token_time = spec.dit.token_time and encodes(plan, spec)
    ways = (plan, second.plan) if second.plan is not None and not chosen.offload else (plan,)
    scale = chosen.batch / max(1, int(plan.header["batch"]))
    return round(max(dit_activations(way, token_time=token_time) for way in ways) * scale)


def _decoding(plan: Plan, spec: ModelSpec, profile: Profile, chosen: Residency) -> tuple[int, int, int]:
    """Of the decoder: layouts that its kernels keep, the frames that it remembers, and a chunk's widest moment.

    While a chunk is decoded, the one before it waits as pixels, and two more as bytes on their way to the host.
    """
    width, height = plan.header["size"]
    part = min(1.0, chosen.tile[0] * chosen.tile[1] / (width * height)) if chosen.tile else 1.0
    frames = _latent_frames(plan, spec)
    pixels = 3 * width * height * spec.vae.stride[0] * min(chosen.chunk, frames) * (float_bytes(profile.precision.vae) + 2)
    widest = vae_activations(plan, chosen.chunk, frames) + pixels
    return vae_layouts(plan), round(vae_caches(plan) * part), round(widest * part)


def _latent_frames(plan: Plan, spec: ModelSpec) -> int:
    width, height = plan.header["size"]
    return spec.latent_shape(width, height, plan.header["frames"])[1]


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
