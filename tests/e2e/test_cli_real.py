"""The command line on a little image-to-video model with two experts: picture, LoRA, budget, cache, rerun."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.e2e.test_real_models import Make, image, make  # noqa: F401 - fixtures
from turbort.cli import app


def run(*args: object) -> int:
    try:
        app([str(arg) for arg in args], prog_name="turbort")
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


Patch, Capture = pytest.MonkeyPatch, pytest.CaptureFixture[str]


def test_run(make: Make, image: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:  # noqa: F811
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TURBORT_CACHE", str(tmp_path / "cache"))
    tensors = {"blocks.0.ffn.0.lora_A.weight": torch.ones(2, 128), "blocks.0.ffn.0.lora_B.weight": torch.ones(192, 2)}
    save_file(tensors, tmp_path / "lora.safetensors")
    root = make("i2v22").root
    common = ("run", "-m", root, "-p", "a red circle", "--image", image, "--profile", "cpu", "--size", "2:1", "--steps", 2, "-q")
    assert run(*common, "-o", "a.npy", "--json") == 0
    first = json.loads(capsys.readouterr().out)
    assert run(*common, "-o", "b.npy", "--lora", "low=lora.safetensors:0.5") == 0
    assert (tmp_path / "a.npy").read_bytes() != (tmp_path / "b.npy").read_bytes()
    assert first
    report = json.loads((tmp_path / "b.report.json").read_text())
    assert "lora" in report["weights"]["low"]
    assert "lora" not in report["weights"]["high"]
    assert report["memory"]["needed"] <= report["memory"]["budget"]
    assert len(list((tmp_path / "cache" / "prompts").iterdir())) == 2  # the prompt and the empty negative prompt
    capsys.readouterr()
    assert run(*common, "-o", "c.npy", "--lora", "middle=lora.safetensors") == 2
    assert "unknown expert" in capsys.readouterr().err
    assert run(*common, "-o", "c.npy", "--memory-budget", "1MiB") == 3
    assert "needs" in capsys.readouterr().err
    (tmp_path / "jobs.txt").write_text(json.dumps({"prompt": "a red circle", "image": str(image)}) + "\n")
    many = ("run", "-m", root, "--prompts", "jobs.txt", "--profile", "cpu", "--steps", "1", "-o", "d.npy")
    assert run(*many) == 0
    assert run(*many) == 0
    assert "1 of 1 videos are there already" in capsys.readouterr().err
