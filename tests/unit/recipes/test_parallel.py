"""Two processes over gloo train like one on the joint batch."""

from __future__ import annotations

import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from recipes.tiny_shapes import parallel

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = Path(__file__).with_name("two_processes.py")


def run_two(*command: str) -> None:
    """Run a Python program in two processes that find each other, as torchrun would start them."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    running = []
    for rank in range(2):
        env = {**os.environ, **meet, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        running.append(subprocess.Popen([sys.executable, *command], env=env, stderr=subprocess.PIPE, text=True))
    for process in running:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error[-2000:]


def test_all_stages_in_two_processes(tmp_path):
    stages = "text,vae,teacher,student,sla,export"
    run_two("-m", "recipes.tiny_shapes.all", "--smoke", "--device", "cpu", "--stages", stages, "--out", str(tmp_path))
    for stage in ("text", "vae", "teacher", "student", "sla"):
        result = json.loads((tmp_path / stage / f"{stage}.json").read_text())
        assert result["apart"] == 0.0, stage
        rows = [json.loads(line) for line in (tmp_path / stage / "curve.jsonl").read_text().splitlines()]
        assert [r["step"] for r in rows] == list(range(len(rows))), stage  # one writer, no step twice
        assert result["steps"] == len(rows) > 0
    assert (tmp_path / "export" / "tiny" / "dit.safetensors").is_file()
    for tracker in (tmp_path / "student").glob("fake*"):
        tracker.unlink()  # as in a run that was packed and unpacked
    command = ("-m", "recipes.tiny_shapes.qat", "--smoke", "--device", "cpu", "--arms", "float", "--score")
    subprocess.run([sys.executable, *command, "--out", str(tmp_path)], check=True, cwd=ROOT, capture_output=True)
    found = json.loads((tmp_path / "qat" / "qat.json").read_text())["rows"]
    assert [(r["training"], r["precision"]) for r in found] == [
        ("float", "float"), ("PTQ", "w8a8"), ("PTQ", "w4a8"), ("QAT", "w8a8"),
    ]  # fmt: skip
    assert all(np.isfinite(r["psnr"]) for r in found[1:])  # three steps from a zero head: the same video at any precision


def test_two_processes_train_like_one(tmp_path):
    run_two(str(SCRIPT), str(tmp_path))
    a, b = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert a["apart"] == b["apart"] == 0.0
    assert a["rows"] == b["rows"] == ["0", "1", "2", "3", "4"]
    assert a["told"] == b["told"] == ({"from": 0}, 0.0)
    script = runpy.run_path(str(SCRIPT))
    network, train = script["network"], script["train"]
    alone = train(network(seed=0), slice(None)).state_dict()
    for name, value in alone.items():
        assert torch.equal(a["state"][name], b["state"][name])
        assert torch.allclose(a["state"][name], value, atol=2e-6), name
    assert not torch.allclose(alone["0.weight"], network(seed=0).state_dict()["0.weight"], atol=1e-3)


def test_one_process_is_left_alone():
    rows = [3, 1, 2]
    assert parallel.split(rows) == rows
    assert parallel.gather(rows) is rows
    assert parallel.agree(rows) is rows
    assert parallel.per_process(5) == 5
    assert parallel.disagreement([torch.ones(2)]) == 0.0
