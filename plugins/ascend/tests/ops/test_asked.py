"""Every op call of every plan at real sizes: live schema, real Meta kernels, real C++ adapters, golden files per chip.

A change in what turbort asks of a device is a visible diff. To accept it: `make ascend-ops UPDATE=1`, and read the diff.
"""

from __future__ import annotations

import difflib
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"
CHIPS = ("Ascend910B3", "Ascend910_9391", "Ascend310P3", "Ascend950PR_9589")
MODELS = ("one-of-each", "tiny", "wan2.1-t2v-1.3b", "wan2.1-t2v-14b")
NZ = ("Ascend910B3", "Ascend910_9391")
"""Chips whose int8 weights can be kept in FRACTAL_NZ (`TURBORT_ASCEND_NZ`)."""

CODE = """
import os, sys
os.environ["FAKE_ACL_HBM_MB"] = str(1 << 21)  # nothing is touched, so sizes cost nothing
os.environ["TASK_QUEUE_ENABLE"] = "0"  # one thread issues everything, so that the order is always the same
from turbort_ascend import emulated
emulated.start({chip!r}, arithmetic=False)
from turbort_ascend.device import find_devices
from ascend_host.plans import transcript
from pathlib import Path
for model in {models!r}:
    Path({folder!r}, model + ".txt").write_text("\\n".join(transcript(model, find_devices()[0])))
"""


def run(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=580, env=environment
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    return answer.stdout


@pytest.fixture(scope="module", autouse=True)
def vendor() -> None:
    if find_spec("torch_npu") is None:
        pytest.skip("torch-npu is not installed: `make ascend-venv`")
    if shutil.which("gcc") is None:
        pytest.skip("gcc not found: apt-get install gcc binutils")


@pytest.mark.parametrize("chip", CHIPS)
def test_what_is_asked_of_the_device_is_what_was_reviewed(chip: str, tmp_path: Path) -> None:
    models = (*MODELS, "w8a8-nz") if chip in NZ else MODELS
    run(CODE.format(chip=chip, models=models, folder=str(tmp_path)))
    for model in models:
        text = (tmp_path / f"{model}.txt").read_text(encoding="utf-8")
        golden = GOLDEN / chip / f"{model}.txt"
        if os.environ.get("UPDATE"):
            golden.parent.mkdir(parents=True, exist_ok=True)
            golden.write_text(text, encoding="utf-8")
        reviewed = golden.read_text(encoding="utf-8")
        diff = "\n".join(
            difflib.unified_diff(reviewed.splitlines(), text.splitlines(), "reviewed", "asked now", n=1, lineterm="")
        )
        assert not diff, diff[:4000]


@pytest.mark.parametrize("chip", NZ)
def test_packed_weights_reach_the_device_in_fractal_nz(chip: str) -> None:
    """Format 29, in the op for such weights; torch-npu would keep the plain layout with no more than a warning."""
    lines = (GOLDEN / chip / "w8a8-nz.txt").read_text(encoding="utf-8").splitlines()
    (matmul,) = (line for line in lines if "QuantMatmul" in line)
    assert "aclnnQuantMatmulWeightNz(" in matmul
    assert "int8[1536,8960] format29" in matmul
