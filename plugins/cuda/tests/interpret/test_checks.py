"""The device session's own checks: that they call kernels as the measurements after them do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed; `pip install triton` brings the interpreter")

from turbort_cuda import tune, variants
from turbort_cuda.kernels import linear8

from benchmarks.cuda import attention_checks
from benchmarks.cuda.workload import DIM, FFN, TOKENS


def test_linears_are_checked_as_they_are_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bias of the same dtype and the same end: the check then judges what is timed, and leaves it compiled."""
    seen: list[dict[str, Any]] = []

    def linear(x: Any, weight: Any, bias: torch.Tensor | None = None, **more: Any) -> None:
        seen.append({"x": x.dtype, "bias": None if bias is None else bias.dtype, **more})

    monkeypatch.setattr(linear8, "linear", linear)
    config = next(variants.linears())
    attention_checks._linear_variant(config, FFN, DIM)[0]()
    next(tune.contests({(TOKENS, FFN, DIM)}, set(), torch.device("cpu"))).call(config)
    assert seen[0] == seen[1]
