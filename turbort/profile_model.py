"""What a hardware profile may say: frozen pydantic models, one per section. No torch here.

A profile states intent by role (which precision the linears get, how many jobs run together, where memory
comes from) and never names a kernel or its tuning. Reading files is the job of `turbort.profile`.
"""

from __future__ import annotations

import hashlib
import json
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, GetJsonSchemaHandler, PrivateAttr, ValidationInfo, model_validator
from pydantic_core import CoreSchema

from turbort.precision import PRECISIONS
from turbort.profile_adaptive import Adaptive
from turbort.profile_fields import (
    AnyPrecision,
    Attention,
    Bytes,
    CachePrecision,
    Capture,
    Count,
    Edge,
    Float,
    Globs,
    Linear,
    MemoryBound,
    Offload,
    Scales,
    Section,
    Share,
    table_of,
)


class Target(Section):
    """The devices a profile is written for."""

    backend: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]*$")]
    """Name of the backend, as in `turbort devices` (`cuda`, `ascend`, `tpu`, `reference`, ...)."""
    arch: Globs = ("*",)
    """Globs on the device's architecture (`sm_90`, `Ascend910B*`, `v5e`)."""
    memory: MemoryBound | None = None
    """Bounds on the device's memory (`>=32GiB`, or `>=20GiB, <40GiB`)."""


class LinearRange(Section):
    """Precisions that linear layers may take; one name stands for a range of one."""

    max: Linear
    """The most precise choice, and the usual one."""
    min: Linear
    """The least precise choice that the planner may go down to."""
    sparsity_threshold: Share = 0.7
    """Share of zero weight tiles from which a layer is stored block-sparse."""
    activation_sparsity: Share = 0.95
    """Share of near-zero activations from which a layer may use `min`."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"max": value, "min": value}
        if isinstance(value, dict) and ("max" in value) != ("min" in value):
            only = value.get("max", value.get("min"))
            return {"max": only, "min": only, **value}
        return value

    @model_validator(mode="after")
    def _ordered(self, info: ValidationInfo) -> LinearRange:
        table = table_of(info)
        low, high = table[self.min], table[self.max]
        if (low.weight_bits, low.activation_bits) > (high.weight_bits, high.activation_bits):
            raise ValueError(f"min {self.min} stores more bits than max {self.max}; swap them")
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler, /) -> dict[str, Any]:
        names = [row.name for row in PRECISIONS.values() if row.kind in ("float", "linear")]
        section = handler.resolve_ref_schema(handler(core_schema))
        section.pop("required", None)
        return {"anyOf": [{"enum": names}, dict(section)], "description": section.get("description", "")}


class Precisions(Section):
    """The precision of each role. First and last layers keep 16 or 32 bits whatever `linear` says."""

    io: Float = "bf16"
    """Latents and everything that enters or leaves a stage."""
    compute: Float = "bf16"
    """Activations between the ops, and what 16-bit weights are stored in."""
    attention: Attention = "bf16"
    """Self-attention; cross-attention stays dense, in `compute`."""
    linear: LinearRange = LinearRange(max="bf16", min="bf16")
    """Weight matrices of the transformer blocks."""
    vae: Float = "bf16"
    """The video autoencoder."""
    text: Linear = "bf16"
    """The text encoder."""
    policy: Literal["auto", "budget", "rules"] = "auto"
    """How calibrated sites get their precision: `budget` takes the fastest that stays within `quality.psnr` and uses no less than
    `attention` and `linear.min`; `rules` keeps `attention` and `linear.max` and goes down to `linear.min` by sparsity; `auto` is
    `budget` where there is a calibration, else `rules`."""
    overrides: dict[Annotated[str, Field(min_length=1)], AnyPrecision] = Field(default_factory=dict)
    """Globs on module paths (`blocks.0.*`) with the precision they get; the first that matches wins."""

    activation_scales: Scales = "token"
    """Scales of 8-bit activations of the transformer's blocks: `token`, one a token; `time`, one for the tokens of a place in all
    frames, where the scheme has scales per token (w8a8, fp8, w4a8, bsq8, bsq4); or globs on the paths of linears
    (`blocks.*.ffn.2`) whose inputs share theirs. Sharing costs another pass over the activation."""

    @property
    def shares_scales(self) -> bool | tuple[str, ...]:
        """Whether activations share scales along time: False, True for all, or globs on the linears that read them."""
        return self.activation_scales == "time" if isinstance(self.activation_scales, str) else self.activation_scales

    @property
    def linear_name(self) -> str:
        """The precision that linears get unless a rule lowers it."""
        return self.linear.max

    def override(self, path: str) -> str | None:
        """The precision that `overrides` gives to a module path, with or without its `stage/` prefix."""
        short = path.partition("/")[2] or path
        return next((name for glob, name in self.overrides.items() if fnmatchcase(path, glob) or fnmatchcase(short, glob)), None)


class AttentionShape(Section):
    """Which keys a query sees; how precisely is `precision.attention`."""

    kind: Literal["sla", "dense"] = "dense"
    """`sla`: sparse-linear attention for models trained for it; `dense`: softmax over every key."""
    topk: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of key blocks in SLA's sparse branch; never less than one block."""
    block: tuple[Edge, Edge] = (64, 128)
    """Query and key block of SLA's block map, in tokens. Another geometry makes another video from the same seed."""


class Batch(Section):
    """How many samples run together."""

    mode: Literal["fixed", "dynamic"] = "fixed"
    """`fixed`: always `size` (padded when fewer are left); `dynamic`: between `min` and `max` as memory and the queue allow."""
    size: Count | None = None
    """The fixed number (1 when not given); guidance pairs count as two."""
    min: Count | None = None
    """Smallest group while enough jobs wait (1 when not given)."""
    max: Count | None = None
    """Largest group (`min` when not given)."""

    @model_validator(mode="after")
    def _consistent(self) -> Batch:
        if self.mode == "fixed" and (self.min is not None or self.max is not None):
            raise ValueError("mode fixed takes size, not min and max; write mode: dynamic or remove them")
        if self.mode == "dynamic" and self.size is not None:
            raise ValueError("mode dynamic takes min and max, not size; write mode: fixed or remove size")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        return self

    @property
    def least(self) -> int:
        """The smallest group."""
        return (self.size if self.mode == "fixed" else self.min) or 1

    @property
    def most(self) -> int:
        """The largest group."""
        return (self.size if self.mode == "fixed" else self.max or self.min) or 1


class Memory(Section):
    """Where memory comes from and what may leave the device."""

    strategy: Literal["native", "pool", "acl-pool", "mxu-tiles", "tiered"] = "native"
    """`native`: torch's allocator; `pool`: the backend's own; `acl-pool`: AscendCL blocks; `mxu-tiles`: shapes padded to the
    matrix unit; `tiered`: by device memory, with quantised weights below `tier_boundary`."""
    tier_boundary: Bytes | None = None
    """Devices with less memory than this keep their weights quantised."""
    offload: Offload = "auto"
    """What moves to the host while it is not needed: `auto` (as the budget asks), `none`, or a list of stages."""
    activation_cache: CachePrecision = "none"
    """Precision of activations that are kept between steps: keys and values of cross-attention; a float means as computed."""
    reserve: Bytes | None = None
    """Device memory that is left to other programs."""
    vae_tile: tuple[Edge, Edge] | None = None
    """Height and width in pixels of the tiles that the VAE decodes; whole frames when absent."""


class Graph(Section):
    """Compiling one denoising step."""

    capture: Capture = "auto"
    """Capture the step (CUDA graph, NPUGraph, XLA): `auto` when every kernel allows it, or true, or false."""


class Monitor(Section):
    """What is watched while a video is made."""

    outlier_share: Share = 0.05
    """Share of activations beyond their quantisation range from which `on_outlier` applies."""
    on_outlier: Literal["promote", "warn", "ignore"] = "warn"
    """`promote`: run that site one precision higher from then on; `warn`; `ignore`."""
    quant_overhead: Share = 0.15
    """Share of the step spent in quantising and dequantising above which the report warns."""


class Quality(Section):
    """What a quantised run must reach against the unquantised one on the same seed."""

    psnr: Annotated[float, Field(ge=0, le=100)] = 28.0
    """Peak signal-to-noise ratio in dB."""
    ssim: Share = 0.85
    """Structural similarity."""
    temporal: Annotated[float, Field(ge=1, le=10)] = 1.25
    """Warp error, flicker index and flicker of latent frames, as multiples of the unquantised run's."""


class Profile(Section):
    """What the user asked for on one platform."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    """Version of this format."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """The profile's name; the file's name without its suffix when absent."""
    description: str = ""
    """One line about the platform."""
    target: Target
    precision: Precisions = Precisions()
    attention: AttentionShape = AttentionShape()
    batch: Batch = Batch()
    memory: Memory = Memory()
    graph: Graph = Graph()
    monitor: Monitor = Monitor()
    adaptive: Adaptive = Adaptive()
    quality: Quality = Quality()
    fallback: Literal["error", "warn", "allow"] = "warn"
    """What happens when no kernel of the device takes a call at the precision asked: stop, warn, or go on."""

    _origin: str = PrivateAttr(default="")

    @property
    def origin(self) -> str:
        """The file this profile was read from, or an empty string."""
        return self._origin

    def from_file(self, path: str) -> Profile:
        """The same profile, remembering the file it was read from."""
        copy = self.model_copy()
        copy._origin = path
        return copy

    @property
    def planned_psnr(self) -> float:
        """dB that the plan's own precisions are chosen for: of the weakest level, else of `quality`."""
        return self.adaptive.levels[0] if self.adaptive.enabled and self.adaptive.levels else self.quality.psnr

    @property
    def document(self) -> dict[str, Any]:
        """The profile as plain data, as a YAML file would hold it."""
        data: dict[str, Any] = json.loads(self.model_dump_json(by_alias=True, exclude_none=True))
        linear = data["precision"]["linear"]
        if linear == json.loads(LinearRange(max=linear["max"], min=linear["max"]).model_dump_json()):
            data["precision"]["linear"] = linear["max"]
        return data

    @property
    def digest(self) -> str:
        """First 12 hex digits of the SHA-256 of what the profile says, whatever file it came from."""
        return hashlib.sha256(json.dumps(self.document, sort_keys=True).encode()).hexdigest()[:12]

    def dumps(self) -> str:
        """The complete profile as YAML, defaults included."""
        text: str = yaml.safe_dump(self.document, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
        return text
