"""One video over two emulated NPUs: two processes, HCCL between them, the frames of one NPU."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from turbort.job import Job

PROMPT, STEPS = "a red circle moves right", 2


@pytest.fixture(scope="module")
def two_heads(little: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The little model with two heads instead of one: only SLA's projection knows the difference."""
    import yaml
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("two") / "two"
    shutil.copytree(little, folder)
    spec = yaml.safe_load((folder / "model.yaml").read_text())
    spec["dit"]["heads"] = 2
    (folder / "model.yaml").write_text(yaml.safe_dump(spec))
    weights = load_file(folder / "dit.safetensors")
    half = {name: x[..., :64][:64].contiguous() if "proj_l" in name else x for name, x in weights.items()}
    save_file(half, folder / "dit.safetensors")
    return folder


def start(model: Path, out: Path, **environment: str) -> subprocess.Popen[str]:
    """One rank of `torchrun -m turbort_ascend.spread run ...`."""
    settings = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "TURBORT_ASCEND_EMULATED": "Ascend910B3",
        "FAKE_ACL_DEVICES": "2",
        **environment,
    }
    if not any(entry.name == "ascend" for entry in entry_points(group="turbort")):
        settings["TURBORT_PLUGINS"] = "turbort_ascend"
    command = [sys.executable, "-m", "turbort_ascend.spread", "run", "--profile", "ascend910", "--model", str(model)]
    command += ["--prompt", PROMPT, "--frames", "5", "--steps", str(STEPS), "-o", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=settings)


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


@pytest.fixture(scope="module")
def spread(two_heads: Path, torch: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder that two ranks wrote into, and what rank 1 asked of its device and of HCCL."""
    folder = tmp_path_factory.mktemp("spread")
    log = folder.with_name("asked")
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2"}
    started = [
        start(two_heads, folder / "two.npy", RANK="0", LOCAL_RANK="0", **meeting),
        start(two_heads, folder / "two.npy", RANK="1", LOCAL_RANK="1", FAKE_ACLNN_LOG=str(log), **meeting),
    ]
    texts = [process.communicate(timeout=400)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], "".join(text[-1500:] for text in texts)
    return folder, [line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("Hccl")]


def test_the_video_is_that_of_one_npu(spread: Any, two_heads: Path, registry: Any) -> None:
    from turbort.models.tiny import read_spec
    from turbort.profile import load_profile
    from turbort.session import Session

    job = Job(PROMPT, frames=5, steps=STEPS)
    with Session.open(read_spec(two_heads / "model.yaml"), load_profile("ascend910"), registry=registry, jobs=[job]) as session:
        one = session.generate([job])[0].frames
    two = np.load(spread[0] / "two.npy")
    assert two.shape == one.shape
    assert one.std() > 1
    error = np.square(one.astype(float) - two.astype(float)).mean()
    # Not bit-equal: a CPU's matmuls of half as many rows add in another order.
    assert 10 * np.log10(255.0**2 / max(error, 1e-9)) > 40


def test_only_the_leading_rank_wrote_it(spread: Any) -> None:
    assert sorted(path.name for path in spread[0].iterdir()) == ["two.npy", "two.report.json"]


def test_every_self_attention_was_exchanged(spread: Any) -> None:
    """q, k, v and back in 2 layers, and one gathering, in each step; a rank has 16 of 32 tokens, 64 of 128 channels go."""
    assert spread[1].count("HcclAlltoAll(bf16[1024] per rank) of 2 ranks") == 4 * 2 * STEPS
    assert sum(line.startswith("HcclAllGather(") for line in spread[1]) == STEPS


def test_the_receipt_says_emulated(spread: Any) -> None:
    assert "(emulated)" in (spread[0] / "two.report.json").read_text(encoding="utf-8")
