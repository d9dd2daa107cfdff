"""Samples of dense and sparse-linear attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from turbort.op import Sample
from turbort.ops._draw import Draw, offset_view, sample, strided_view


def attention_samples() -> Iterator[Sample]:
    """Dense attention: real head counts, cross-attention, ragged lengths, shifted keys, views."""
    yield sample("q1-k1-h2", _dense(1, 1, 2))
    yield sample("q7-k7-h40", _dense(7, 7, 40), "real")
    yield sample("q257-k257-h12", _dense(257, 257, 12), "real")
    yield sample("q257-k512-h12-cross", _dense(257, 512, 12), "real")
    yield sample("q1021-k33-h2-cross", _dense(1021, 33, 2), "tail")
    yield sample("q1021-k1021-h1", _dense(1021, 1021, 1), "tail")
    yield sample("b2-q130-k130-h3", _dense(130, 130, 3, batch=2), "batch")
    yield sample("q65-k65-h4-d64", _dense(65, 65, 4, d=64))
    yield sample("q257-k257-h2-mean", _dense(257, 257, 2, mean=5.0), "mean")
    yield sample("q257-k257-h2-outlier", _dense(257, 257, 2, outlier=True), "outlier")
    yield sample("q129-k129-h2-offset", _dense(129, 129, 2, view=offset_view), "offset")
    yield sample("q129-k129-h2-packed", _dense(129, 129, 2, view=strided_view), "strided")
    yield sample("q32760-k32760-h12", _dense(32760, 32760, 12), "large", "real")
    yield sample("q32760-k512-h12-cross", _dense(32760, 512, 12), "large", "real")


def sla_attention_samples() -> Iterator[Sample]:
    """SLA: tails in queries and keys, one block up to all blocks, both geometries."""
    yield sample("t576-h2-k10", _sparse(576, 2, 0.1), "tail")
    yield sample("t512-h2-k50", _sparse(512, 2, 0.5))
    yield sample("t7-h2-k10", _sparse(7, 2, 0.1), "tail")
    yield sample("t257-h12-k40", _sparse(257, 12, 0.4), "real", "tail")
    yield sample("t1021-h3-k25", _sparse(1021, 3, 0.25), "tail")
    yield sample("t321-h2-k100", _sparse(321, 2, 1.0), "tail")
    yield sample("t640-h2-k1-floor", _sparse(640, 2, 0.01))
    yield sample("b2-t300-h2-k40", _sparse(300, 2, 0.4, batch=2), "batch", "tail")
    yield sample("t577-h2-k30-b128x64", _sparse(577, 2, 0.3, block=(128, 64)), "tail")
    yield sample("t577-h2-k40-mean", _sparse(577, 2, 0.4, mean=3.0), "mean", "tail")
    yield sample("t384-h2-k40-packed", _sparse(384, 2, 0.4, view=strided_view), "strided")
    yield sample("t32760-h12-k10", _sparse(32760, 12, 0.1), "large", "real", "tail")


def _same(x: Tensor) -> Tensor:
    return x


def _dense(
    lq: int,
    lk: int,
    heads: int,
    *,
    batch: int = 1,
    d: int = 128,
    mean: float = 0.0,
    outlier: bool = False,
    view: Callable[[Tensor], Tensor] = _same,
) -> Callable[[Draw], dict[str, Any]]:
    """`mean` shifts the keys (what smoothing must absorb); `outlier` scales some channels of the values."""

    def make(draw: Draw) -> dict[str, Any]:
        return {
            "q": view(draw(batch, lq, heads, d)),
            "k": view(draw(batch, lk, heads, d, mean=mean)),
            "v": view(draw(batch, lk, heads, d, outlier=outlier)),
        }

    return make


def _sparse(
    length: int,
    heads: int,
    topk: float,
    *,
    batch: int = 1,
    block: tuple[int, int] = (64, 128),
    mean: float = 0.0,
    view: Callable[[Tensor], Tensor] = _same,
    d: int = 128,
) -> Callable[[Draw], dict[str, Any]]:
    """Neighbouring tokens share a direction, as video tokens do, so that the choice of blocks is not a coin toss."""

    def make(draw: Draw) -> dict[str, Any]:
        runs = -(-length // 64)

        def tokens(shift: float) -> Tensor:
            common = draw(batch, runs, heads, d).repeat_interleave(64, dim=1)[:, :length]
            return view(common + draw(batch, length, heads, d, mean=shift, scale=0.5))

        return {
            "q": tokens(0.0),
            "k": tokens(mean),
            "v": tokens(0.0),
            "proj_weight": draw(d, d, scale=d**-0.5),
            "proj_bias": draw(d, scale=0.1),
            "topk": topk,
            "block": block,
        }

    return make
