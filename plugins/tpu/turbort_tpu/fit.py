"""Whether a transformer fits into HBM: a figure from its sizes, and what would fit where it does not.

need = weights + 2 residual streams + the widest feed-forward activation, in bytes, for one device:
    weights = layers * (8 D^2 + 2 D F + [2 D^2 with an image branch]) * bytes + embeddings, head and time in 16 bits
    stream = batch * L * D * 2;  widest = batch * L * F * (2 + 1 if the linears quantise to 8 bits)
Text encoder and VAE run outside this program. Against the peak that libtpu 0.0.42 reports for six compiled trunks (1.3B and
14B, 480p and 720p, bf16 and int8, without embeddings and head) the figure is between 0.4 % low and 8 % high.
Whole steps, which also hold the keys and values of the text, take more: 3.55 GiB (1.3B) and 21.31 GiB (14B) where it says 3.39
and 17.64, at 480p in int8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from turbort_tpu.generations import GENERATIONS, GIB, Generation

if TYPE_CHECKING:
    from turbort.models.config import DitConfig, ModelSpec

BYTES = {"bf16": 2, "fp32": 4, "w8a8": 1, "fp8": 1}


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes of HBM that one compiled step needs."""

    weights: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.activations

    def __str__(self) -> str:
        return f"{self.total / GIB:.1f} GiB ({self.weights / GIB:.1f} weights, {self.activations / GIB:.1f} activations)"


def tokens(spec: ModelSpec, size: tuple[int, int], frames: int) -> int:
    """Tokens L of a clip."""
    _, *grid = spec.latent_shape(*size, frames)
    count = 1
    for extent, patch in zip(grid, spec.dit.patch, strict=True):
        count *= extent // patch
    return count


def need(dit: DitConfig, length: int, batch: int, linear: str) -> Need:
    """The figure of this module for L = `length` tokens and `batch` samples with linears at precision `linear`."""
    d, f = dit.dim, dit.ffn_dim
    blocks = dit.layers * (8 * d * d + 2 * d * f + (2 * d * d if dit.image_embed else 0))
    rest = d * (dit.text_dim + d + dit.in_channels * 4 + dit.out_channels * 4) * 2 + d * (dit.freq_dim + 7 * d) * 4
    size = BYTES.get(linear, 2)
    rows = batch * length
    return Need(blocks * size + rest, rows * (4 * d + f * (3 if size == 1 else 2)))


def eight_bit(generation: Generation) -> str:
    """The linear precision that saves memory on a generation: fp8 where INT8 brings nothing, else w8a8."""
    return "fp8" if "fp8" in generation.features else "w8a8"


def what_fits(
    spec: ModelSpec, length: int, batch: int, linear: str, here: Generation, models: Mapping[str, ModelSpec]
) -> Iterator[str]:
    """Lines that each name one change after which the model fits."""
    small = eight_bit(here) if "int8" in here.features or "fp8" in here.features else linear
    if BYTES.get(small, 2) < BYTES.get(linear, 2) and (figure := need(spec.dit, length, batch, small)).total <= here.hbm:
        yield f"linears at {small} on {here.name}: {figure}"
    weights = need(spec.dit, 0, batch, small).weights
    if weights < here.hbm:
        per_token = need(spec.dit, 1, batch, small).activations
        most = (here.hbm - weights) // per_token
        yield f"shorter or smaller clips on {here.name}: at most {most} tokens instead of {length} at {small}"
    for row in GENERATIONS.values():
        precision = eight_bit(row) if {"int8", "fp8"} & row.features else "bf16"
        if row.name != here.name and (figure := need(spec.dit, length, batch, precision)).total <= row.hbm:
            yield f"{row.name} ({row.hbm / GIB:.2f} GiB) at {precision}: {figure}"
    for other in models.values():
        if other.name in (spec.name, "tiny") or other.task != spec.task:
            continue
        figure = need(
            other.dit, tokens(other, (other.defaults.width, other.defaults.height), other.defaults.frames), batch, small
        )
        if figure.total <= here.hbm:
            yield f"{other.name} at its default size on {here.name}: {figure}"
