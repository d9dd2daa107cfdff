"""Samples of `linear`: real widths, ragged sizes, outliers, views and every epilogue."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from turbort.op import Sample
from turbort.ops._draw import Draw, offset_view, sample, spread, strided_view
from turbort.quant.bsq import block_sparsify


def linear_samples() -> Iterator[Sample]:
    """Every precision of `linear` is tried on each of these."""
    for tokens, k, n, tags in (
        (1, 1536, 256, ("real",)),
        (7, 5120, 136, ("real",)),
        (257, 1536, 264, ("real",)),
        (64, 1536, 1536, ("real",)),
        (3, 8960, 192, ("real",)),
        (3, 13824, 64, ("real",)),
        (1021, 256, 128, ()),
        (33, 1000, 257, ("tail",)),
        (5, 333, 77, ("tail",)),
    ):
        yield sample(f"t{tokens}-k{k}-n{n}", _case(tokens, k, n), *tags)
    yield sample("t257-k384-n128-mean", _case(257, 384, 128, mean=3.0), "mean")
    yield sample("t257-k1536-n128-outlier", _case(257, 1536, 128, outlier=True), "outlier")
    yield sample("t17-k256-n128-nobias", _case(17, 256, 128, bias=False))
    yield sample("b2-t65-k256-n128", _case(65, 256, 128, batch=2), "batch")
    yield sample("t129-k256-n384-gelu", _case(129, 256, 384, extra=_gelu))
    yield sample("t129-k384-n256-residual", _case(129, 384, 256, extra=_residual))
    yield sample("b2-t65-k384-n256-gate", _case(65, 384, 256, batch=2, extra=_gated), "batch")
    yield sample("t65-k384-n256-tokengate", _case(65, 384, 256, extra=_token_gated))
    yield sample("t65-k256-n128-offset", _case(65, 256, 128, view=offset_view), "offset")
    yield sample("t65-k256-n128-strided", _case(65, 256, 128, view=strided_view), "strided")
    yield sample("t65-k256-n128-spread", _case(65, 256, 128, view=spread), "spread")
    yield sample("t65-k512-n256-pruned", _case(65, 512, 256, density=0.3), "sparse")
    yield sample("t32760-k1536-n8960", _case(32760, 1536, 8960, extra=_gelu), "large", "real")
    yield sample("t32760-k8960-n1536", _case(32760, 8960, 1536, extra=_gated), "large", "real")
    yield sample("t32760-k5120-n5120", _case(32760, 5120, 5120), "large", "real")


Extra = Callable[[Draw, int, int, int], dict[str, Any]]


def _plain(draw: Draw, batch: int, tokens: int, n: int) -> dict[str, Any]:
    return {}


def _gelu(draw: Draw, batch: int, tokens: int, n: int) -> dict[str, Any]:
    return {"activation": "gelu_tanh"}


def _residual(draw: Draw, batch: int, tokens: int, n: int) -> dict[str, Any]:
    return {"residual": draw(batch, tokens, n)}


def _gated(draw: Draw, batch: int, tokens: int, n: int) -> dict[str, Any]:
    return {"residual": draw(batch, tokens, n), "gate": draw.wide(batch, 1, n)}


def _token_gated(draw: Draw, batch: int, tokens: int, n: int) -> dict[str, Any]:
    return {"residual": draw(batch, tokens, n), "gate": draw.wide(batch, tokens, n)}


def _same(x: Tensor) -> Tensor:
    return x


def _case(
    tokens: int,
    k: int,
    n: int,
    *,
    batch: int = 1,
    bias: bool = True,
    mean: float = 0.0,
    outlier: bool = False,
    density: float | None = None,
    view: Callable[[Tensor], Tensor] = _same,
    extra: Extra = _plain,
) -> Callable[[Draw], dict[str, Any]]:
    """Weights have the spread of a trained linear, 1/sqrt(K), so that outputs are of order one."""

    def make(draw: Draw) -> dict[str, Any]:
        weight = draw(n, k, scale=k**-0.5)
        return {
            "x": view(draw(batch, tokens, k, mean=mean, outlier=outlier)),
            "weight": weight if density is None else block_sparsify(weight, 8, density),
            "bias": draw(n, scale=0.1) if bias else None,
            **extra(draw, batch, tokens, n),
        }

    return make
