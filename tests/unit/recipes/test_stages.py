"""Stages of the recipe: resuming, packing, exporting, and the shipped folder in turbort against the training networks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from recipes.tiny_shapes import all as stages
from recipes.tiny_shapes import common, evaluate, export, fakequant, torchdevice, transport, vae_train
from recipes.tiny_shapes.config import SMALL
from recipes.tiny_shapes.data import tokens, vocabulary_size
from recipes.tiny_shapes.nets import DENSE, Dit, Mode
from recipes.tiny_shapes.sampling import rcm_sample
from recipes.tiny_shapes.scoring import to_frames
from recipes.tiny_shapes.textnet import TextEncoder
from recipes.tiny_shapes.vaenet import Vae
from turbort.backend import Device, MemoryStats
from turbort.errors import TurbortError
from turbort.models.tiny import read_spec
from turbort.request import grammar_warning

# 192 tokens: two key blocks, of which SLA keeps one.
S = replace(
    SMALL, frames=9, edge=128, dim=128, heads=1, ffn=128, layers=1, text_dim=32, text_heads=2, text_ffn=32, text_layers=1,
    vae_dim=4,
)  # fmt: skip
CAPTION = "a red circle moves right"


def test_training_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(vae_train, "reconstruction_score", lambda *_: 0.0)
    monkeypatch.setattr(vae_train, "RATES", vae_train.RATES[:1])
    o = common.Options(tmp_path, minutes=0.1, smoke=True, device="cpu")
    first = vae_train.train(o)
    before = common.load_weights(tmp_path / "vae", "vae")
    again = vae_train.train(replace(o, resume=True))
    assert (first["steps"], again["steps"]) == (3, 6)
    assert again["seconds"] > first["seconds"]
    rows = [json.loads(line) for line in (tmp_path / "vae" / "curve.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == list(range(6))
    assert all(np.isfinite(list(r.values())).all() for r in rows)
    after = common.load_weights(tmp_path / "vae", "vae")
    moved = [float((after[k] - before[k]).norm() / before[k].norm().clamp_min(1e-3)) for k in before]
    assert 0 < max(moved) < 1  # went on from the weights, not from new ones
    saved = torch.load(tmp_path / "vae" / "checkpoint.pt", weights_only=True)
    assert saved["opt"][0]["state"][0]["step"] == 6


def test_pieces_give_the_run_back(tmp_path, monkeypatch):
    monkeypatch.setattr(transport, "PIECE", 1000)
    run = tmp_path / "run"
    (run / "vae").mkdir(parents=True)
    (run / "student").mkdir()
    body = np.random.default_rng(0).bytes(2500)
    (run / "vae" / "vae.safetensors").write_bytes(body)
    (run / "student" / "fake.safetensors").write_bytes(b"left out")
    (run / "vae" / "checkpoint.pt").write_bytes(b"stays behind")
    count = transport.pack(run, tmp_path / "pieces", ["student/fake*"])
    assert count == len(list((tmp_path / "pieces").iterdir())) > 2
    transport.unpack(tmp_path / "pieces", tmp_path / "back")
    files = [p.relative_to(tmp_path / "back").as_posix() for p in (tmp_path / "back").rglob("*") if p.is_file()]
    assert files == ["vae/vae.safetensors"]
    assert (tmp_path / "back" / "vae" / "vae.safetensors").read_bytes() == body


def test_gates_name_what_is_missing():
    assert stages.shortfall("vae", {"psnr": 31.0, "right": 0.99}) == []
    assert stages.shortfall("vae", {"psnr": float("nan"), "right": 0.5}) == [
        "vae: psnr is nan, at least 30 is needed",
        "vae: right is 0.500, at least 0.97 is needed",
    ]
    assert len(stages.shortfall("teacher", {"held_out": {"right": 0.2}})) == 1
    assert stages.shortfall("export", {}) == []


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of random weights with its exported folder."""
    out = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    vae, text, dit = Vae(S), TextEncoder(S, vocabulary_size()), Dit(S, sla=True)
    with torch.no_grad():
        for p in dit.parameters():
            p.add_(0.05 * torch.randn_like(p))
    common.save_weights(out / "vae", "vae", vae.state_dict(), torch.float32)
    common.save_weights(out / "text", "text", text.state_dict())
    (out / "text" / "text.json").write_text("{}")
    common.save_weights(out / "teacher", "dit", Dit(S).state_dict())
    common.save_weights(out / "sla", "dit", dit.state_dict(), torch.float32)
    info = {"mean": [0.02 * i for i in range(16)], "std": [0.5 + 0.01 * i for i in range(16)]}
    (out / "vae" / "vae.json").write_text(json.dumps(info))
    (out / "teacher" / "teacher.json").write_text(json.dumps({"guidance": 3.5}))
    size = export.write_model(out, S, out / "export" / "tiny")
    assert size == export.folder_bytes(out / "export" / "tiny")
    return out


def training_networks(out: Path) -> tuple[TextEncoder, Dit, Vae]:
    """The training networks with the values that the shipped files stand for."""
    folder = out / "export" / "tiny"
    text, dit, vae = TextEncoder(S, vocabulary_size()), Dit(S, sla=True), Vae(S)

    def read(path: Path) -> dict[str, torch.Tensor]:
        with safe_open(path, "pt") as f:
            stored = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 - not a mapping
        scales = {k.removesuffix("_scale"): v for k, v in stored.items() if k.endswith("weight_scale")}
        return {k: v.float() * scales.get(k, 1.0) for k, v in stored.items() if not k.endswith("weight_scale")}

    text.load_state_dict(read(folder / "text_encoder" / "model.safetensors"))
    dit.load_state_dict(read(folder / "dit.safetensors"))
    vae.load_state_dict(read(folder / "vae.safetensors"))
    info = json.loads((out / "vae" / "vae.json").read_text())
    vae.set_statistics(info["mean"], info["std"])
    return text.eval(), dit.eval(), vae.eval()


@pytest.mark.parametrize(
    ("setting", "mode", "apart"),
    [
        (evaluate.Setting("fp32", "fp32", "fp32", topk=0.5), Mode(topk=0.5), 0.02),
        (evaluate.Setting("default"), Mode(topk=0.1, linear="w8a8", int8=True), 0.5),
    ],
)
def test_shipped_folder_makes_the_clip_of_the_training_networks(shipped, setting, mode, apart):
    frames = evaluate.shipped_frames(shipped / "export" / "tiny", setting, [CAPTION], [7], torch.device("cpu"))[0]
    text, dit, vae = training_networks(shipped)
    generator = torch.Generator().manual_seed(1000 * evaluate.SEED + 7)
    noise = torch.randn(1, *S.latent, generator=generator)
    with torch.no_grad():
        context = text(torch.from_numpy(tokens([CAPTION], S.text_len)))
        z = rcm_sample(lambda x, t: dit(x, t, context, mode), noise, 4, generator)
        plain = rcm_sample(lambda x, t: dit(x, t, context, DENSE), noise, 4, torch.Generator().manual_seed(0))
        expected = to_frames(vae, z)[0].astype(int)
        other = to_frames(vae, plain)[0].astype(int)
    assert frames.shape == (S.frames, S.edge, S.edge, 3)
    assert expected.std() > 2  # not an even gray
    assert np.abs(frames.astype(int) - expected).mean() < apart
    assert np.abs(frames.astype(int) - other).mean() > 2 * apart


def test_evaluation_on_a_gpu_takes_the_plugin_of_the_recipe(shipped, monkeypatch):
    """The plugin's device, here the CPU under another name, gives the frames of the reference backend."""
    setting, folder = evaluate.Setting("fp32", "fp32", "fp32"), shipped / "export" / "tiny"
    dtypes = frozenset({"float32", "int8"})
    device = Device(torchdevice.NAME, "a CPU", "cpu", "any", dtypes=dtypes)
    monkeypatch.setattr(torchdevice.TorchDevice, "probe", lambda _: [device])
    monkeypatch.setattr(torchdevice.TorchDevice, "memory", lambda *_: MemoryStats())
    monkeypatch.setattr(torchdevice.TorchDevice, "synchronize", lambda *_: None)
    made = evaluate.shipped_frames(folder, setting, [CAPTION], [8], torch.device("cuda"))
    with evaluate.open_session(folder, setting, torch.device("cuda"), 1) as session:
        assert session.plan.header["backend"] == torchdevice.NAME
    expected = evaluate.shipped_frames(folder, setting, [CAPTION], [8], torch.device("cpu"))
    assert np.abs(made.astype(int) - expected).mean() < 0.05  # other kernels, the same mathematics


def test_stored_codes_are_those_of_training(shipped):
    trained = common.load_weights(shipped / "sla", "dit")
    stored = export.stored_dit(trained)
    names = [k for k in stored if k.endswith("_scale")]
    assert len(names) == 11  # 4 + 4 + 2 in the one block, and the time projection
    for name in names:
        weight = name.removesuffix("_scale")
        assert stored[weight].dtype == torch.int8
        assert torch.equal(stored[weight] * stored[name], fakequant.int8_rows(trained[weight], 1e-5))
    assert {v.dtype for k, v in stored.items() if k not in names and f"{k}_scale" not in names} == {torch.bfloat16}


def test_too_large_a_model_is_refused(shipped, monkeypatch):
    monkeypatch.setattr(export, "LIMIT", 1000)
    with pytest.raises(TurbortError, match="1,000 are allowed"):
        export.check_size(shipped / "export" / "tiny")


def test_weights_for_later_training_are_sharded_and_readable(shipped, monkeypatch):
    monkeypatch.setattr(common, "SHARD_BYTES", 100_000)
    folder = shipped / "export" / "weights"
    export.write_weights(shipped, folder)
    assert len(list((folder / "teacher").glob("dit-*.safetensors"))) > 1
    back, teacher = common.load_weights(folder / "teacher", "dit"), common.load_weights(shipped / "teacher", "dit")
    assert back.keys() == teacher.keys()
    assert all(torch.equal(back[k], teacher[k]) for k in back)


def test_installing_needs_scores_and_writes_the_card(shipped, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "ASSETS", tmp_path / "assets")
    monkeypatch.setattr(export, "WEIGHTS", tmp_path / "weights")
    export.write_weights(shipped, shipped / "export" / "weights")
    with pytest.raises(SystemExit, match="evaluate first"):
        export.install(shipped)
    assert not (tmp_path / "assets").exists()
    (shipped / "evaluate").mkdir()
    rows = {"default": {**dict.fromkeys(evaluate.SHARES, 0.925), "captions": 200}}
    (shipped / "evaluate" / "table.md").write_text(evaluate.markdown(rows))
    export.install(shipped)
    assert "| default | 200 | 92.5 % |" in (tmp_path / "assets" / "README.md").read_text()
    assert grammar_warning([CAPTION], read_spec(tmp_path / "assets" / "model.yaml")) is None
    assert grammar_warning(["a dog"], read_spec(tmp_path / "assets" / "model.yaml")) is not None
    assert (tmp_path / "weights" / "teacher" / "teacher.json").is_file()
