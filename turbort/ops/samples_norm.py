"""Samples of norms, modulation, gated residuals, query/key norm with RoPE, GELU and quantise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor

from turbort.op import Sample
from turbort.ops._draw import Draw, offset_view, sample, spread, strided_view

Make = Callable[[Draw, Tensor], dict[str, Any]]


def _rows(make: Make) -> Iterator[Sample]:
    """The token matrices every row-wise op is tried on: `make(draw, x)` adds the other arguments."""

    def case(batch: int, tokens: int, width: int, view: Callable[[Tensor], Tensor] | None = None, **kind: Any) -> Any:
        def build(draw: Draw) -> dict[str, Any]:
            x = draw(batch, tokens, width, **kind)
            return make(draw, x if view is None else view(x))

        return build

    yield sample("t1-d1536", case(1, 1, 1536), "real")
    yield sample("t257-d1536", case(1, 257, 1536), "real")
    yield sample("t7-d5120", case(1, 7, 5120), "real")
    yield sample("t1021-d256", case(1, 1021, 256))
    yield sample("b2-t33-d1000", case(2, 33, 1000), "tail", "batch")
    yield sample("t65-d1536-mean", case(1, 65, 1536, mean=3.0), "mean")
    yield sample("t65-d1536-outlier", case(1, 65, 1536, outlier=True), "outlier")
    yield sample("t65-d768-tiny", case(1, 65, 768, scale=1e-3))
    yield sample("t65-d768-offset", case(1, 65, 768, view=offset_view), "offset")
    yield sample("t65-d768-strided", case(1, 65, 768, view=strided_view), "strided")
    yield sample("t65-d768-spread", case(1, 65, 768, view=spread), "spread")
    yield sample("t32760-d1536", case(1, 32760, 1536), "large", "real")
    yield sample("t32760-d5120", case(1, 32760, 5120), "large", "real")


def layer_norm_samples() -> Iterator[Sample]:
    """Rows with affine parameters."""
    return _rows(lambda draw, x: {"x": x, "weight": draw(x.shape[-1], mean=1.0), "bias": draw(x.shape[-1])})


def rms_norm_samples() -> Iterator[Sample]:
    """Rows with a weight."""
    return _rows(lambda draw, x: {"x": x, "weight": draw(x.shape[-1], mean=1.0)})


def _modulation(draw: Draw, x: Tensor, tokens: int) -> dict[str, Any]:
    shape = (x.shape[0], tokens, x.shape[-1])
    return {"scale": draw.wide(*shape, scale=0.3), "shift": draw.wide(*shape)}


def norm_modulate_samples() -> Iterator[Sample]:
    """Rows with one modulation per clip, and one per token."""
    yield from _rows(lambda draw, x: {"x": x, **_modulation(draw, x, 1)})
    yield sample("b2-t33-d256-pertoken", _per_token_modulation, "batch")


def _per_token_modulation(draw: Draw) -> dict[str, Any]:
    x = draw(2, 33, 256)
    return {"x": x, **_modulation(draw, x, 33)}


def _gate(draw: Draw, x: Tensor, tokens: int) -> dict[str, Any]:
    return {"y": draw(*x.shape), "gate": draw.wide(x.shape[0], tokens, x.shape[-1])}


def gated_residual_samples() -> Iterator[Sample]:
    """Rows with one gate per clip, and one per token."""
    yield from _rows(lambda draw, x: {"x": x, **_gate(draw, x, 1)})
    yield sample("b2-t33-d256-pertoken", _per_token_gate, "batch")


def _per_token_gate(draw: Draw) -> dict[str, Any]:
    x = draw(2, 33, 256)
    return {"x": x, **_gate(draw, x, 33)}


def gated_residual_norm_modulate_samples() -> Iterator[Sample]:
    """The two above together."""
    yield from _rows(lambda draw, x: {"x": x, **_gate(draw, x, 1), **_modulation(draw, x, 1)})
    yield sample("b2-t33-d256-pertoken", _per_token_fused, "batch")


def _per_token_fused(draw: Draw) -> dict[str, Any]:
    x = draw(2, 33, 256)
    return {"x": x, **_gate(draw, x, 33), **_modulation(draw, x, 33)}


def qk_norm_rope_samples() -> Iterator[Sample]:
    """Queries and keys with random angles."""

    def case(batch: int, tokens: int, heads: int, d: int = 128, strided: bool = False, **kind: Any) -> Any:
        def build(draw: Draw) -> dict[str, Any]:
            x = draw(batch, tokens, heads * d, **kind)
            cos, sin = draw.rotation(tokens, d // 2)
            weight = draw(heads * d, mean=1.0, scale=0.2)
            return {"x": strided_view(x) if strided else x, "weight": weight, "cos": cos, "sin": sin, "heads": heads}

        return build

    yield sample("t1-h12", case(1, 1, 12), "real")
    yield sample("t257-h12", case(1, 257, 12), "real")
    yield sample("t7-h40", case(1, 7, 40), "real")
    yield sample("b2-t1021-h2", case(2, 1021, 2), "batch")
    yield sample("t33-h3-d64", case(1, 33, 3, 64))
    yield sample("t65-h12-mean", case(1, 65, 12, mean=3.0), "mean")
    yield sample("t65-h12-outlier", case(1, 65, 12, outlier=True), "outlier")
    yield sample("t65-h12-packed", case(1, 65, 12, strided=True), "strided")
    yield sample("t32760-h12", case(1, 32760, 12), "large", "real")


def gelu_quant_samples() -> Iterator[Sample]:
    """Rows on their own."""
    return _rows(lambda draw, x: {"x": x})


def quantize_samples() -> Iterator[Sample]:
    """Rows in every scheme that activations use."""
    for scheme in ("int8-token", "int8-block128", "fp8-token"):
        for row in _rows(lambda draw, x, scheme=scheme: {"x": x, "emit": scheme}):  # type: ignore[misc]
            yield Sample(f"{row.id}-{scheme}", row.make, row.tags)


def quantize_time_samples() -> Iterator[Sample]:
    """Latent grids of a few frames, in both token schemes: real sizes, one frame, one place, and frames that differ in size."""

    def case(
        batch: int, frames: int, places: int, width: int, view: Callable[[Tensor], Tensor] | None = None, **kind: Any
    ) -> Any:
        def build(draw: Draw, scheme: str) -> dict[str, Any]:
            x = draw(batch, frames * places, width, **kind)
            return {"x": x if view is None else view(x), "emit": scheme, "frames": frames}

        return build

    rows: tuple[tuple[str, Any, tuple[str, ...]], ...] = (
        ("f9-p64-d256", case(1, 9, 64, 256), ()),
        ("f21-p12-d1536", case(1, 21, 12, 1536), ("real",)),
        ("f3-p5-d8960", case(1, 3, 5, 8960), ("real",)),
        ("f1-p33-d768", case(1, 1, 33, 768), ()),
        ("f33-p1-d768", case(1, 33, 1, 768), ()),
        ("b2-f5-p7-d1000", case(2, 5, 7, 1000), ("tail", "batch")),
        ("f5-p13-d1536-outlier", case(1, 5, 13, 1536, outlier=True), ("outlier",)),
        ("f5-p13-d768-tiny", case(1, 5, 13, 768, scale=1e-3), ()),
        ("f5-p13-d768-offset", case(1, 5, 13, 768, offset_view), ("offset",)),
        ("f5-p13-d768-strided", case(1, 5, 13, 768, strided_view), ("strided",)),
        ("f5-p13-d768-spread", case(1, 5, 13, 768, spread), ("spread",)),
        ("f21-p1560-d1536", case(1, 21, 1560, 1536), ("large", "real")),
    )
    for scheme in ("int8-token", "fp8-token"):
        for name, build, tags in rows:
            yield sample(f"{name}-{scheme}", partial(build, scheme=scheme), *tags)
