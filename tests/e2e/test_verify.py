"""`turbort verify` on a small model: a good profile passes, a broken kernel does not, and the worst sites are named."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from turbort.hookspecs import hookimpl
from turbort.job import Job
from turbort.kernel import Kernel
from turbort.models.config import ModelSpec
from turbort.models.tiny import read_spec
from turbort.planner import find_target
from turbort.profile import load_profile
from turbort.quality.verify import Verification, verify
from turbort.reference import Reference, reference_kernels
from turbort.registry import Registry

pytest.importorskip("skimage")
pytest.importorskip("cv2")
JOB = Job("a red circle moves right", seed=3, steps=2)


@pytest.fixture(scope="module")
def spec(little: Path) -> ModelSpec:
    return read_spec(little / "model.yaml")


def backend(kernel: Kernel | None) -> Any:
    """A plugin whose backend is the reference with one kernel of its own."""

    class Broken(Reference):
        name = "broken"

        def kernels(self) -> Iterable[Kernel]:
            yield from reference_kernels("plain")
            if kernel is not None:
                yield kernel

    @hookimpl
    def turbort_backends() -> Iterable[Any]:
        return (Broken(),)

    return SimpleNamespace(__name__="broken", HOOK_API=1, turbort_backends=turbort_backends)


def verified(spec: ModelSpec, kernel: Kernel | None = None, **changes: Any) -> Verification:
    registry = Registry(extra=[backend(kernel)])
    profile = load_profile("cpu")
    target = find_target(profile, registry, "broken")
    return verify(spec, profile, [replace(JOB, **changes)], registry=registry, target=target)


@pytest.fixture(scope="module")
def good(spec: ModelSpec) -> Verification:
    return verified(spec)


def test_a_good_profile_passes_every_gate(good: Verification) -> None:
    assert good.passed
    gates = {number.gate for number in good.numbers if number.passed is not None}
    assert gates == {"receipt", "op", "forward", "video", "temporal"}
    linears = [site for site in good.sites if site.choice.precision == "w8a8"]
    assert len(linears) == 2 * 10
    assert all(0 < site.nmse < 1e-3 for site in linears)
    assert set(linears[0].by_step) == {1, 2}


def test_promotions_name_the_next_precision_and_its_price(good: Verification) -> None:
    rows = good.promotions
    assert len(rows) == 5
    assert rows[0].nmse == max(row.nmse for row in rows)
    assert {(row.precision, row.next) for row in rows} == {("w8a8", "fp32")}
    assert all(row.ms > 0 and row.next_ms > 0 and row.next_weight > row.weight for row in rows)


@pytest.mark.parametrize(
    ("op", "wrong", "precision"),
    [("linear", "first_token_scale_for_all", "w8a8"), ("rms_norm", "scale_off_by_one_percent", "fp32")],
)
def test_a_broken_kernel_is_caught_and_named(spec: ModelSpec, op: str, wrong: str, precision: str) -> None:
    """The second one leaves a fine video: only the per-op gate sees it."""
    result = verified(spec, Kernel(op, wrong, f"turbort.testing.wrong:{wrong}", (precision,), priority=50))
    assert not result.passed
    failed = {number.gate for number in result.numbers if number.passed is False}
    assert "op" in failed
    assert {site.choice.kernel for site in result.sites if not site.passed} == {f"broken/{wrong}"}
    assert result.promotions[0].path in {site.choice.path for site in result.sites if not site.passed}


def test_a_kernel_that_silently_stays_wide_is_caught(spec: ModelSpec) -> None:
    """Its errors are smaller than allowed, so only the receipt's gate can see it."""
    result = verified(spec, Kernel("linear", "wide", "turbort.testing.wrong:stays_wide", ("w8a8",), priority=50))
    assert {number.gate for number in result.numbers if number.passed is False} == {"receipt"}
    assert {site.choice.kernel for site in result.sites if site.stayed_wide} == {"broken/wide"}


def test_sites_that_were_never_bound_show_in_the_receipt(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    from turbort.op import Slot
    from turbort.session import Session

    bind = Slot.bind

    def forgetful(self: Slot, fn: Any, *, provider: str, precision: str | None) -> None:
        if self.role != "ffn.in":
            bind(self, fn, provider=provider, precision=precision)

    monkeypatch.setattr(Slot, "bind", forgetful)
    profile = load_profile("cpu")
    profile = profile.model_copy(update={"monitor": profile.monitor.model_copy(update={"on_outlier": "ignore"})})
    with Session.open(spec, profile, jobs=[JOB]) as session:
        session.generate([JOB])
        report = session.report()
    row = {"stage": "dit", "op": "linear", "precision": "w8a8", "planned": 20, "ran": 18}
    assert report["unmet"] == [row]
    assert "unplanned" in {row["precision"] for row in report["executed"]}


def test_a_long_trajectory_is_not_judged_by_psnr(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("turbort.quality.numbers.FEW_STEPS", 1)
    result = verified(spec)
    video = next(number for number in result.numbers if number.name == "video PSNR")
    assert video.passed is None
    assert "not judged: 2 steps" in video.note


def test_the_command_writes_a_report_and_fails_below_the_gate(spec: ModelSpec, little: Path, tmp_path: Path, capsys: Any) -> None:
    from turbort.cli import app

    profile = tmp_path / "strict.yaml"
    profile.write_text("schema: 1\nextends: cpu\nquality: {psnr: 99, ssim: 0.85}\n")
    args = ["verify", "-m", str(little), "--profile", str(profile), "-p", "a red circle", "--steps", "1"]
    with pytest.raises(SystemExit) as ended:
        app([*args, "-o", str(tmp_path / "v.report.json")], prog_name="turbort")
    assert ended.value.code == 1
    shown = capsys.readouterr()
    assert "below the gate: latent PSNR of one forward, video PSNR" in shown.err
    assert "blocks." in shown.out
    assert "overrides:" in shown.err
    written = json.loads((tmp_path / "v.report.json").read_text())
    assert written["verification"]["passed"] is False
    assert (tmp_path / written["verification"]["frames_file"]).is_file()
    assert {row["precision"] for row in written["executed"]} >= {"w8a8", "fp32"}
