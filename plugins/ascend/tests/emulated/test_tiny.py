"""`turbort run --profile ascend910.yaml` with the embedded model on the emulated driver, judged beside the CPU's own clips.

The judge of tiny-shapes looks at frames only and says per clip whether colour, shape and motion of every object are right.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from turbort.job import Job
from turbort.models.tiny import ASSETS

JOBS = (Job("a red circle moves right", seed=0), Job("a blue square grows", seed=1))
PROFILE = Path(__file__).parents[4] / "profiles" / "ascend910.yaml"


def on_emulated_npu(folder: Path) -> list[Any]:
    """Frames that the command line makes with the profile's file."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TURBORT_ASCEND_EMULATED": "Ascend910B3"}
    if not any(entry.name == "ascend" for entry in entry_points(group="turbort")):
        environment["TURBORT_PLUGINS"] = "turbort_ascend"
    files = [folder / f"{number}.npy" for number in range(len(JOBS))]
    lines = [
        json.dumps({"prompt": job.prompt, "seed": job.seed, "out": str(file)}) for job, file in zip(JOBS, files, strict=True)
    ]
    (folder / "jobs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "turbort", "run", "--profile", str(PROFILE), "--prompts", str(folder / "jobs.jsonl")]
    command += ["-o", str(folder / "clip.npy"), "--no-prompt-cache"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=580, env=environment, cwd=folder)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "(emulated)" in (folder / "clip.report.json").read_text(encoding="utf-8")
    return [np.load(file) for file in files]


def on_cpu(registry: Any) -> list[Any]:
    """Frames of the same jobs from the reference backend, as `make demo` makes them."""
    from turbort.models.spec import get_model
    from turbort.profile import load_profile
    from turbort.session import Session

    with Session.open(get_model("tiny"), load_profile("cpu"), registry=registry, on="cpu", jobs=list(JOBS)) as session:
        return [result.frames for result in session.generate(list(JOBS))]


def scores(clips: list[Any]) -> list[tuple[bool, ...]]:
    """Per clip: right in all, then colour, shape and motion of each object asked for."""
    from recipes.tiny_shapes.captions import parse
    from recipes.tiny_shapes.oracle import judge

    found = []
    for job, clip in zip(JOBS, clips, strict=True):
        scene = parse(job.prompt)
        assert scene is not None
        verdict = judge(np.asarray(clip), scene)
        parts = [part for o in verdict.objects for part in (o.color_ok, o.shape_ok, o.motion_ok)]
        found.append((verdict.fully_right, *parts))
    return found


def test_the_oracle_score_is_that_of_the_cpu_run(torch: Any, registry: Any, tmp_path: Path) -> None:
    if not (ASSETS / "dit.safetensors").is_file():
        pytest.skip(f"the embedded model's weights are not in {ASSETS.name}")
    pytest.importorskip("cv2", reason="the judge of tiny-shapes needs opencv-python-headless")
    npu, cpu = scores(on_emulated_npu(tmp_path)), scores(on_cpu(registry))
    assert npu == cpu
    assert any(right for right, *_ in cpu), f"the judge finds nothing right on the CPU either: {cpu}"
