"""From a prompt to frames on emulated `npu:0`: wiring, layouts, dtypes, quantisation and graphs, not an NPU's rounding."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from turbort.job import Job

JOB = Job("a red circle moves right", seed=3)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.square(a.astype(float) - b.astype(float)).mean()
    return float(10 * np.log10(255.0**2 / error)) if error else float("inf")


def run(
    little: Path, registry: Any, on: str | None, jobs: list[Job] | None = None, profile_name: str = "ascend910"
) -> tuple[list[np.ndarray], dict[str, Any]]:
    from turbort.models.tiny import read_spec
    from turbort.profile import load_profile
    from turbort.session import Session

    profile = load_profile(profile_name)
    with Session.open(read_spec(little / "model.yaml"), profile, registry=registry, on=on, jobs=jobs or [JOB]) as session:
        results = session.generate(jobs or [JOB])
        return [result.frames for result in results], session.report()


@pytest.fixture(scope="module")
def pair(little: Path, registry: Any) -> tuple[np.ndarray, np.ndarray, dict[str, Any], dict[str, int]]:
    from ascend_host.driver import stats

    (on_cpu,), _ = run(little, registry, "cpu")
    before = stats()
    (on_npu,), report = run(little, registry, None)
    after = stats()
    return on_cpu, on_npu, report, {name: after[name] - before[name] for name in after}


def test_the_video_is_the_cpus_video(pair: Any) -> None:
    on_cpu, on_npu, _, _ = pair
    assert on_npu.shape == on_cpu.shape
    assert on_npu.std() > 1
    assert psnr(on_cpu, on_npu) > 25


def test_the_vendor_kernels_made_it(pair: Any) -> None:
    _, _, report, _ = pair
    providers = {row["provider"] for row in report["executed"]}
    assert {"ascend/quant-matmul", "ascend/block-sparse", "ascend/fused-infer", "ascend/rotary", "ascend/layer-norm"} <= providers
    assert not any(provider.startswith("reference/") for provider in providers)


def test_the_receipt_says_emulated(pair: Any) -> None:
    _, _, report, _ = pair
    assert "(emulated)" in str(report)


def test_steps_were_captured_and_replayed(pair: Any) -> None:
    _, _, _, driver = pair
    assert driver["captures"] >= 1
    assert driver["replays"] >= 4


def test_the_session_came_from_the_pool_and_gave_everything_back(little: Path, registry: Any, torch: Any) -> None:
    from turbort_ascend.device import find_devices
    from turbort_ascend.pool import AclPool

    pool = AclPool(find_devices()[0])  # type: ignore[index]
    gc.collect()  # what earlier tests left behind must not be given back during this one
    torch.npu.empty_cache()
    before = pool.stats()
    run(little, registry, None)
    gc.collect()
    torch.npu.empty_cache()
    assert pool.stats()["requests"] > before["requests"]
    assert pool.stats()["live"] == before["live"]


def test_a_seed_means_the_same_bytes(little: Path, registry: Any, pair: Any) -> None:
    (again,), _ = run(little, registry, None)
    assert again.tobytes() == pair[1].tobytes()


def test_the_command_line_makes_the_video_and_says_emulated(little: Path, torch: Any, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TURBORT_ASCEND_EMULATED": "Ascend910B3"}
    if not any(entry.name == "ascend" for entry in entry_points(group="turbort")):
        environment["TURBORT_PLUGINS"] = "turbort_ascend"
    command = [sys.executable, "-m", "turbort", "run", "--profile", "ascend910", "--model", str(little), "--seed", "3"]
    command += ["--prompt", JOB.prompt, "-o", str(tmp_path / "npu.mp4")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert (tmp_path / "npu.mp4").stat().st_size > 1000
    assert "(emulated)" in (tmp_path / "npu.report.json").read_text(encoding="utf-8")
