"""The conformance suite on the emulated device, a few cases per kernel; `turbort check ascend --emulated` runs all of them.

The planted mistakes at the end show which check finds what.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

OURS = ("torch", "plain")
"""Rows without a vendor op; the core's own tests cover their functions."""
WANTED = (
    "t33-",
    "t17-k256",
    "b2-t65-k256",
    "t129-k384",
    "q130",
    "b2-q130",
    "q7-k7",
    "t257-h12",
    "b2-t300",
    "t7-",
    "b2-",
    "l7",
    "b1",
)


@pytest.fixture(scope="module")
def suite(registry: Any) -> Any:
    from turbort.testing import Suite

    return Suite("ascend", registry)


def chosen(suite: Any) -> list[str]:
    """Per kernel and precision: at most three cases, those that probe tails, batches and views first."""
    groups: dict[tuple[str, str, str], list[Any]] = defaultdict(list)
    for case in suite.cases.values():
        if case.kernel.name not in OURS:
            groups[case.spec.name, case.kernel.name, case.precision.name].append(case)
    picked = []
    for cases in groups.values():
        ranked = sorted(cases, key=lambda case: (-len(case.sample.tags & {"tail", "batch", "strided"}), _size(case), case.id))
        picked += [case.id for case in ranked[:3]]
    return picked


def _size(case: Any) -> int:
    return sum(int(part) for part in "".join(c if c.isdigit() else " " for c in case.sample.id).split())


def test_vendor_kernels_conform(suite: Any) -> None:
    results = [suite.run(case_id) for case_id in chosen(suite)]
    bad = [f"{found.id}: {found.check}: {found.message}" for found in results if found.outcome.bad]
    assert not bad, "\n".join(bad)
    passed = {found.id.split("/")[1] for found in results if found.outcome.value == "pass"}
    here = {
        kernel.name
        for kernel in suite.registry.kernels("ascend")
        if kernel.name not in OURS and not kernel.requires - suite.device.features
    }
    assert passed == here


def test_the_backend_itself_conforms(suite: Any) -> None:
    results = [suite.run(case_id) for case_id in suite.backend_ids]
    bad = [f"{found.id}: {found.check}: {found.message}" for found in results if found.outcome.bad]
    assert not bad, "\n".join(bad)


def test_the_device_is_labelled(suite: Any) -> None:
    assert suite.device.name == "Ascend910B3 (emulated)"
    assert "emulated" in suite.device.features


def planted(suite: Any, case_id: str) -> Any:
    found = suite.run(case_id)
    assert found.outcome.bad, f"{case_id} passed with a planted mistake"
    return found


def test_a_wrong_layout_is_found(suite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from turbort_ascend.kernels import attention

    real = attention.npu.npu_fused_infer_attention_score

    class Wrong:
        @staticmethod
        def npu_fused_infer_attention_score(*args: Any, **options: Any) -> Any:
            return real(*args, **{**options, "input_layout": "BNSD"})

    monkeypatch.setattr(attention, "npu", Wrong)
    found = planted(suite, "attention/fused-infer/bf16/q65-k65-h4-d64")
    assert found.check == "runs"
    assert "heads" in found.message


def test_a_missing_token_scale_is_found(suite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from turbort_ascend.kernels import linear

    real = linear.npu

    class Wrong:
        npu_dynamic_quant = real.npu_dynamic_quant

        @staticmethod
        def npu_quant_matmul(*args: Any, **options: Any) -> Any:
            return real.npu_quant_matmul(*args, **{**options, "pertoken_scale": None, "bias": None, "output_dtype": 15})

    monkeypatch.setattr(linear, "npu", Wrong)
    found = planted(suite, "linear/quant-matmul/w8a8/t17-k256-n128-nobias")
    assert found.check in ("budget", "form")


def test_a_wrong_rotation_is_found(suite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from turbort_ascend.kernels import norm

    real = norm.npu

    class Wrong:
        npu_rms_norm = real.npu_rms_norm

        @staticmethod
        def npu_rotary_mul(x: Any, cos: Any, sin: Any, mode: str) -> Any:
            return real.npu_rotary_mul(x, sin, cos, mode)

    monkeypatch.setattr(norm, "npu", Wrong)
    case_id = next(case for case in suite.cases if case.startswith("qk_norm_rope/rotary/bf16/"))
    assert planted(suite, case_id).check == "budget"
