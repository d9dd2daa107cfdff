"""The conformance suite of turbort on the interpreter's stand-in device: the samples that are small enough for it."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("triton", reason="triton is not installed; `pip install triton` brings the interpreter")

import turbort_cuda

from turbort.registry import Registry
from turbort.testing import Outcome, Suite

# One column per op: a tail in every size, an epilogue, a view, a mean or an outlier. The whole suite is
# `TRITON_INTERPRET=1 turbort check cuda`, which takes an hour or so.
SAMPLES = {
    "linear": ("t5-k333-n77", "b2-t65-k384-n256-gate"),
    "attention": ("q129-k129-h2-packed", "q65-k65-h4-d64"),
    "sla_attention": ("t7-h2-k10", "b2-t300-h2-k40"),
}
SMALLEST = {
    "norm_modulate": ("t7-d5120", "b2-t33-d256-pertoken"),
    "layer_norm": ("t7-d5120",),
    "rms_norm": ("t7-d5120",),
    "gated_residual": ("b2-t33-d1000",),
    "gated_residual_norm_modulate": ("t7-d5120", "b2-t33-d256-pertoken"),
    "qk_norm_rope": ("t33-h3-d64",),
    "gelu_quant": ("t7-d5120",),
    "quantize": ("t7-d5120-int8-token", "t65-d768-spread-int8-block128", "t7-d5120-fp8-token"),
    "quantize_time": ("b2-f5-p7-d1000-int8-token", "f3-p5-d8960-int8-token", "f5-p13-d768-strided-fp8-token"),
    "patchify": ("b2-c48-4x6x6-p222",),
    "causal_conv3d": ("b2-c8-o16-2x7x5-cache2",),
    "vae_norm_silu": ("b2-c192-2x5x5-mean", "c384-1x7x13", "c32-1x4x4-zeros"),
}
CHEAP = ("int8", "int8-fp8", "w8a8", "w8a8-block128", "fp8", "w4a8", "w4a16", "bsq8", "bsq4", "bf16")
TWINS = ("causal_conv3d/triton",)
"""The same function as `triton-any`, refused here."""
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def _chosen(case_id: str) -> bool:
    op, kernel, precision, sample = case_id.split("/")
    if not kernel.startswith("triton") or f"{op}/{kernel}" in TWINS or kernel == "triton-no-fp8" or precision not in CHEAP:
        return False
    return sample in (SAMPLES.get(op) or SMALLEST.get(op, ()))


def _suite() -> Suite:
    registry = Registry()
    return Suite("cuda", registry if "cuda" in registry.backends else Registry(extra=[turbort_cuda]))


SUITE = _suite() if INTERPRETED else None


@pytest.mark.parametrize("case_id", [case for case in SUITE.cases if _chosen(case)] if SUITE else ["none"])
def test_case(case_id: str) -> None:
    assert SUITE is not None
    result = SUITE.run(case_id)
    if result.outcome is Outcome.REJECTED:
        pytest.skip(result.message)
    assert result.outcome is Outcome.PASS, f"{result.check}: {result.message}"
