"""The outlier monitor: an injected outlier channel, with the monitor and without, in the embedded model and a smaller one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from turbort.checkpoints import open_checkpoint, stream
from turbort.errors import InputError
from turbort.guard.policy import Policy
from turbort.job import Job
from turbort.models.config import ModelSpec
from turbort.models.tiny import ASSETS, read_spec
from turbort.models.wan_dit import WanDit
from turbort.profile import Profile, load_profile
from turbort.quant.qtensor import QTensor
from turbort.session import Session

JOB = Job("a red circle moves right", seed=3)
CHANNEL, SCALE = 5, 3000.0


def with_outlier(weights: dict[str, torch.Tensor], layers: int, dim: int) -> dict[str, torch.Tensor]:
    """One channel of every block's normed activation SCALE times as large, and its readers' weights so much smaller.

    (norm(x) (1 + scale) + shift) with scale = modulation + time: scaling both sums by s is exact in real numbers, so the
    unquantised video stays the same, while an int8 token spends its range on one value.
    """
    changed = dict(weights)
    name = "time_projection.1"
    for part in ("weight", "bias"):
        value = changed[f"{name}.{part}"].clone()
        for chunk in (0, 1, 3, 4):  # shift1, scale1, shift2, scale2
            value[chunk * dim + CHANNEL] *= SCALE
        changed[f"{name}.{part}"] = value
    for block in range(layers):
        modulation = changed[f"blocks.{block}.modulation"].clone()
        for chunk in (0, 3):
            modulation[:, chunk, CHANNEL] *= SCALE
        for chunk in (1, 4):
            modulation[:, chunk, CHANNEL] = SCALE * (1 + modulation[:, chunk, CHANNEL]) - 1
        changed[f"blocks.{block}.modulation"] = modulation
        for reader in ("self_attn.q", "self_attn.k", "self_attn.v", "ffn.0"):
            weight = changed[f"blocks.{block}.{reader}.weight"].clone()
            weight[:, CHANNEL] /= SCALE
            changed[f"blocks.{block}.{reader}.weight"] = weight
    return changed


@pytest.fixture(scope="module")
def spec(little: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """The small model with the outlier in it."""
    folder = tmp_path_factory.mktemp("outlier") / "model"
    shutil.copytree(little, folder)
    read = read_spec(folder / "model.yaml")
    weights = with_outlier(load_file(folder / "dit.safetensors"), read.dit.layers, read.dit.dim)
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "dit.safetensors")
    return read


def profile(on_outlier: str) -> Profile:
    cpu = load_profile("cpu")
    return cpu.model_copy(update={"monitor": cpu.monitor.model_copy(update={"on_outlier": on_outlier})})


def plain() -> Profile:
    cpu = load_profile("cpu")
    linear = cpu.precision.linear.model_copy(update={"max": "fp32", "min": "fp32"})
    return cpu.model_copy(update={"precision": cpu.precision.model_copy(update={"linear": linear})})


def made(spec: ModelSpec, chosen: Profile, job: Job = JOB, **options: Any) -> tuple[np.ndarray, dict[str, Any], Policy]:
    with Session.open(spec, chosen, jobs=[job], **options) as session:
        frames = session.generate([job])[0].frames
        return frames, session.report(), session.policy()


@pytest.fixture(scope="module")
def truth(spec: ModelSpec) -> np.ndarray:
    return made(spec, plain())[0]


@pytest.fixture(scope="module")
def guarded(spec: ModelSpec) -> tuple[np.ndarray, dict[str, Any], Policy]:
    return made(spec, profile("promote"))


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(a.astype(float) - b).mean()))


def test_the_embedded_model_with_an_outlier(tmp_path: Path) -> None:
    """Below the gate without the monitor; with it, exactly the readers of the scaled channel are promoted, at the first step."""
    folder = tmp_path / "tiny"
    shutil.copytree(ASSETS, folder)
    read = read_spec(folder / "model.yaml")
    with torch.device("meta"):
        expected = {name: tuple(value.shape) for name, value in WanDit(read.dit).named_parameters()}
    weights = {}
    for name, value in stream(open_checkpoint(folder / "dit.safetensors"), expected):
        plain_value = value.dequantize(torch.float32) if isinstance(value, QTensor) else value.float()
        weights[name] = plain_value.reshape(expected[name]).contiguous()
    save_file(with_outlier(weights, read.dit.layers, read.dit.dim), folder / "dit.safetensors")
    job = replace(JOB, frames=9)
    exact = made(read, plain(), job)[0]
    gate = profile("promote").quality.psnr
    assert psnr(exact, made(read, profile("ignore"), job)[0]) < gate
    frames, report, _ = made(read, profile("promote"), job)
    events = report["monitor"]["transformers"][0]["events"]
    wanted = {f"blocks.{block}.{site}" for block in range(read.dit.layers) for site in ("self_attn.q", "ffn.0")}
    assert {event["site"] for event in events} == wanted
    assert all((event["step"], event["action"]) == (1, "promote") and event["share"] > 0.9 for event in events)
    assert psnr(exact, frames) >= gate


def test_the_outlier_changes_nothing_without_quantisation(spec: ModelSpec, little: Path, truth: np.ndarray) -> None:
    clean = made(read_spec(little / "model.yaml"), plain())[0]
    assert psnr(truth, clean) > 50


def test_without_the_monitor_the_video_misses_the_gate(spec: ModelSpec, truth: np.ndarray) -> None:
    frames, report, _ = made(spec, profile("ignore"))
    assert psnr(truth, frames) < profile("ignore").quality.psnr
    assert report["monitor"]["mode"] == "off"


def test_promotion_keeps_the_video_within_the_gate(spec: ModelSpec, truth: np.ndarray, guarded: Any) -> None:
    frames, report, _ = guarded
    events = report["monitor"]["transformers"][0]["events"]
    assert {event["site"] for event in events if event["step"] == 1} >= {"blocks.0.self_attn.q", "blocks.1.ffn.0"}
    assert all((event["action"], event["from"], event["to"]) == ("promote", "w8a8", "fp32") for event in events)
    assert psnr(truth, frames) >= profile("promote").quality.psnr


def test_the_receipt_counts_both_kernels_and_the_repeated_step(guarded: Any) -> None:
    _, report, _ = guarded
    rows = {(row["op"], row["precision"]): row for row in report["executed"] if row["stage"] == "dit"}
    events = report["monitor"]["transformers"][0]["events"]
    repeated = len({event["step"] for event in events if event["action"] == "promote"})
    assert rows["sla_attention", "fp32"]["calls"] == 2 * (4 + repeated)
    assert rows["linear", "w8a8"]["calls"] > 0
    assert rows["linear", "fp32"]["calls"] > 2 * 3 * 4  # more than what is never quantised


def test_a_recorded_policy_replays_to_the_same_bytes(spec: ModelSpec, guarded: Any, tmp_path: Path) -> None:
    frames, _, policy = guarded
    (tmp_path / "p.yaml").write_text(policy.dumps())
    read = Policy.load(tmp_path / "p.yaml")
    again, report, _ = made(spec, profile("promote"), policy=read)
    assert again.tobytes() == frames.tobytes()
    assert report["monitor"]["mode"] == "replay"
    sla = next(row for row in report["executed"] if row["op"] == "sla_attention")
    assert sla["calls"] == 2 * 4  # nothing is repeated, for nothing is found out
    with pytest.raises(InputError, match="recorded for"):
        made(spec, profile("promote"), policy=replace(read, plan="another"))


def test_warning_changes_nothing_but_is_logged(spec: ModelSpec) -> None:
    silent, _, _ = made(spec, profile("ignore"))
    frames, report, _ = made(spec, profile("warn"))
    assert frames.tobytes() == silent.tobytes()
    events = report["monitor"]["transformers"][0]["events"]
    assert {event["action"] for event in events} == {"warn"}
    assert len({event["site"] for event in events}) == len(events)


def test_the_command_line_records_and_replays(spec: ModelSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from turbort.cli import app

    def run(*args: object) -> int:
        try:
            app(["run", "-m", str(spec.root), "--profile", "cpu", "-p", "a red circle", "--steps", "1", "-q", *map(str, args)])
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    policy = tmp_path / "policy.yaml"
    assert run("-o", tmp_path / "a.npy", "--record-policy", policy) == 0
    assert run("-o", tmp_path / "b.npy", "--policy", policy) == 0
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    assert run("-o", tmp_path / "b.npy", "--policy", policy, "--record-policy", policy) == 2
    assert "exclude each other" in capsys.readouterr().err
    policy.write_text("policy: 1\n")
    assert run("-o", tmp_path / "b.npy", "--policy", policy) == 2
    assert "is not a policy" in capsys.readouterr().err
