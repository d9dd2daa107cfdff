"""Little models of every kind of Wan, with random weights, through the session: experts, images, LoRAs, residency."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from turbort.checkpoints import open_checkpoint
from turbort.checkpoints.convert import convert
from turbort.checkpoints.lora import Lora
from turbort.embed import PromptCache
from turbort.errors import CheckpointError, InputError, UnavailableError
from turbort.job import Job
from turbort.memory import Residency, forecast
from turbort.models.clip import ClipConfig, ClipVision
from turbort.models.config import ModelSpec
from turbort.models.tiny import read_spec
from turbort.models.vae import build_vae
from turbort.models.wan_dit import WanDit
from turbort.profile import Profile, load_profile
from turbort.session import Session

CLIP = {"dim": 32, "ffn_dim": 48, "heads": 2, "layers": 1, "image": 28, "patch": 14}
EXPERTS = {"experts": ["high", "low"], "boundary": 0.875, "sampler": "unipc",
           "presets": {"unipc": {"steps": 4, "guidance": 2.0, "guidance_low": 1.5, "shift": 5.0}}}  # fmt: skip
KINDS: Mapping[str, dict[str, Any]] = {
    "i2v21": {"task": "i2v", "clip": CLIP, "dit": {"in_channels": 36, "image_embed": True, "image_dim": 32}},
    "t2v22": {**EXPERTS, "dit": {}},
    "i2v22": {**EXPERTS, "task": "i2v", "dit": {"in_channels": 36}},
    "ti2v": {
        "dit": {"in_channels": 48, "out_channels": 48, "token_time": True},
        "vae": {"base_dim": 8, "decoder_base_dim": 8, "z_dim": 48, "stride": [4, 16, 16], "residual": True, "pixel_patch": 2},
        "defaults": {"width": 64, "height": 64, "frames": 5, "fps": 8},
    },
}
Make = Callable[[str], ModelSpec]


@pytest.fixture(scope="module")
def make(little: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """`make("i2v21")`: a folder with a random model of that kind, and its spec."""
    made: dict[str, ModelSpec] = {}

    def build(kind: str) -> ModelSpec:
        if kind not in made:
            made[kind] = _build(little, tmp_path_factory.mktemp(kind), KINDS[kind])
        return made[kind]

    return build


def _build(little: Path, folder: Path, changes: dict[str, Any]) -> ModelSpec:
    data = yaml.safe_load((little / "model.yaml").read_text())
    data["defaults"]["frames"] = 5
    data["dit"].pop("sla")
    data["presets"] = {"euler": {"steps": 2}}
    data["sampler"] = "euler"
    for key, value in changes.items():
        data[key] = {**data.get(key, {}), **value} if key in ("dit", "vae") else value
    roles = data.get("experts", ["dit"])
    data["files"] = {**{role: [f"{role}.safetensors"] for role in roles},
                     **{role: data["files"][role] for role in ("vae", "text", "tokenizer")}}  # fmt: skip
    models: dict[str, torch.nn.Module] = {}
    if "clip" in changes:
        data["files"]["image"] = ["clip.safetensors"]
        models["clip"] = ClipVision(ClipConfig(**changes["clip"]))
    (folder / "model.yaml").write_text(yaml.safe_dump(data))
    spec = read_spec(folder / "model.yaml")
    torch.manual_seed(11)
    models |= {role: WanDit(spec.dit) for role in roles} | {"vae": build_vae(spec.vae)}
    for name, model in models.items():
        weights = {key: torch.randn(value.shape) / max(value[0].numel(), 1) ** 0.5 for key, value in model.state_dict().items()}
        weights = {key: value + 1 if "norm" in key or key.endswith("gamma") else value for key, value in weights.items()}
        save_file(weights, folder / f"{name}.safetensors")
    shutil.copytree(little / "text_encoder", folder / "text_encoder")
    shutil.copy(little / "tokenizer.json", folder)
    return spec


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A picture of 96x48 pixels, red on the left and blue on the right."""
    import av

    pixels = np.zeros((48, 96, 3), np.uint8)
    pixels[:, :48, 0] = pixels[:, 48:, 2] = 200
    with av.open(str(tmp_path / "image.png"), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 96, 48, "rgb24"
        for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")):
            container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return tmp_path / "image.png"


def plain(**changes: Any) -> Profile:
    """The CPU's profile without quantisation, so that what is compared is exact."""
    cpu = load_profile("cpu")
    linear = cpu.precision.linear.model_copy(update={"max": "fp32", "min": "fp32"})
    precision = cpu.precision.model_copy(update={"attention": "fp32", "linear": linear, **changes})
    attention = cpu.attention.model_copy(update={"kind": "dense"})
    return cpu.model_copy(update={"precision": precision, "attention": attention})


def frames(spec: ModelSpec, jobs: list[Job], profile: Profile | None = None, **options: Any) -> tuple[list[np.ndarray], Session]:
    with Session.open(spec, profile or plain(), jobs=jobs, **options) as session:
        made = session.generate(jobs)
        session.final = session.report()  # type: ignore[attr-defined]
    return [result.frames for result in made], session


JOB = Job("a red circle moves right", seed=3)


def test_image_to_video_of_wan_2_1_sees_the_picture(make: Make, image: Path, tmp_path: Path) -> None:
    spec = make("i2v21")
    job = replace(JOB, image=image)
    (first,), session = frames(spec, [job])
    assert first.shape == (5, 32, 80, 3)  # the picture's shape at no more than the model's area, in whole tokens
    assert "image" in session.final["seconds"]  # type: ignore[attr-defined]
    weights = load_file(spec.root / "clip.safetensors")  # type: ignore[operator]
    other = tmp_path / "other"
    shutil.copytree(spec.root, other)  # type: ignore[arg-type]
    save_file({name: -value for name, value in weights.items()}, other / "clip.safetensors")
    (changed,), _ = frames(spec, [job], root=other)
    assert first.tobytes() != changed.tobytes()  # the tokens of the image encoder matter, not the channels alone
    with pytest.raises(InputError, match="none was given"):
        frames(spec, [JOB])


def test_a_text_model_refuses_a_picture(make: Make, image: Path) -> None:
    with pytest.raises(InputError, match="starts from text alone"):
        frames(make("t2v22"), [replace(JOB, image=image)])


def test_ti2v_begins_with_the_picture(make: Make, image: Path) -> None:
    """The first latent frame is the picture's own, so the first frame is the picture as the VAE knows it."""
    spec = make("ti2v")
    job = replace(JOB, image=image, width=64, height=64)
    (first, other, free), _ = frames(spec, [job, replace(job, seed=4), replace(JOB, seed=3)])
    assert np.abs(first[0].astype(int) - other[0].astype(int)).max() <= 1
    assert np.abs(first[1:].astype(int) - other[1:].astype(int)).max() > 8
    assert np.abs(first[0].astype(int) - free[0].astype(int)).max() > 8


def with_residency(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Sessions choose this residency whatever the budget."""

    def chosen(plan: Any, spec: Any, profile: Any, *_: Any, **__: Any) -> Any:
        usual = forecast(plan, spec, profile)
        return replace(usual, residency=replace(usual.residency, **changes))

    monkeypatch.setattr("turbort.session.choose", chosen)


def test_two_experts_take_turns_and_swapping_changes_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make("t2v22")
    jobs = [JOB, replace(JOB, seed=4)]
    resident, session = frames(spec, jobs)
    assert session.final["expert_swaps"] == 0  # type: ignore[attr-defined]
    with_residency(monkeypatch, experts="swap")
    swapped, session = frames(spec, jobs)
    assert [one.tobytes() for one in resident] == [one.tobytes() for one in swapped]
    assert session.final["expert_swaps"] == 3  # type: ignore[attr-defined]  # to low, back for the second job, to low again
    rows = session.final["executed"]  # type: ignore[attr-defined]
    (calls,) = [row["calls"] for row in rows if (row["stage"], row["op"]) == ("dit", "attention")]
    assert calls == 2 * 2 * 4 * 2 * 2  # kinds of attention x blocks x steps x passes x jobs


def test_both_experts_and_their_guidance_matter(make: Make, tmp_path: Path) -> None:
    spec = make("t2v22")
    (usual, same), _ = frames(spec, [JOB, replace(JOB, guidance=2.0, guidance_low=1.5)])
    (other,), _ = frames(spec, [replace(JOB, guidance=2.0)])
    assert usual.tobytes() == same.tobytes()
    assert usual.tobytes() != other.tobytes()
    for role in spec.experts:
        folder = tmp_path / role
        shutil.copytree(spec.root, folder)  # type: ignore[arg-type]
        weights = load_file(folder / f"{role}.safetensors")
        weights["head.head.weight"] = -weights["head.head.weight"]
        save_file(weights, folder / f"{role}.safetensors")
        (changed,), _ = frames(spec, [JOB], root=folder)
        assert changed.tobytes() != usual.tobytes(), role


def test_a_broken_low_expert_is_found_at_once(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make("t2v22")
    shutil.copytree(spec.root, tmp_path / "broken")  # type: ignore[arg-type]
    weights = load_file(tmp_path / "broken" / "low.safetensors")
    del weights["blocks.1.ffn.0.weight"]
    save_file(weights, tmp_path / "broken" / "low.safetensors")
    with_residency(monkeypatch, experts="swap")
    with pytest.raises(CheckpointError, match=r"blocks\.1\.ffn\.0\.weight"):
        Session.open(spec, plain(), jobs=[JOB], root=tmp_path / "broken")


def test_image_to_video_of_wan_2_2(make: Make, image: Path) -> None:
    job = replace(JOB, image=image, width=64, height=32)
    (first, other), _ = frames(make("i2v22"), [job, replace(job, seed=5)])
    assert first.shape == (5, 32, 64, 3)
    assert first.tobytes() != other.tobytes()


def test_streamed_blocks_give_the_same_video(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make("t2v22")
    cpu = load_profile("cpu")
    (usual,), _ = frames(spec, [JOB], cpu)
    with_residency(monkeypatch, offload=True)
    (streamed,), session = frames(spec, [JOB], cpu)
    assert streamed.tobytes() == usual.tobytes()
    assert session.final["memory"]["residency"]["offload"] is True  # type: ignore[attr-defined]


def test_tiles_are_used_and_stay_close(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make("ti2v")
    (usual,), _ = frames(spec, [JOB])
    with_residency(monkeypatch, tile=(48, 48))
    (tiled,), _ = frames(spec, [JOB])
    assert tiled.shape == usual.shape
    assert tiled.tobytes() != usual.tobytes()
    assert np.abs(tiled.astype(int) - usual.astype(int)).mean() < 40  # random weights see far; trained ones do not


def test_embeddings_are_remembered_on_disk(make: Make, tmp_path: Path) -> None:
    spec, cache = make("ti2v"), PromptCache(tmp_path / "prompts")
    (first,), session = frames(spec, [JOB], cache=cache)
    assert session._embedder.loads == 1
    (again,), session = frames(spec, [JOB], cache=cache)
    assert session._embedder.loads == 0
    assert again.tobytes() == first.tobytes()
    (file,) = (tmp_path / "prompts").iterdir()
    file.write_bytes(b"damaged")
    (third,), session = frames(spec, [JOB], cache=cache)
    assert (session._embedder.loads, third.tobytes()) == (1, first.tobytes())
    frames(spec, [JOB], plain(text="bf16"), cache=cache)
    assert len(list((tmp_path / "prompts").iterdir())) == 2  # another precision is another embedding


def test_an_int8_text_encoder_is_close_to_the_full_one(make: Make) -> None:
    spec = make("ti2v")
    encoded = []
    for text in ("fp32", "w8a8"):
        with Session.open(spec, plain(text=text), jobs=[JOB]) as session:
            encoded.append(session._embed([JOB.resolved(spec)], lambda event: None)[JOB.prompt])
    assert not torch.equal(*encoded)
    assert float((encoded[0] - encoded[1]).square().sum() / encoded[0].square().sum()) < 1e-2


def test_a_lora_of_one_expert_changes_the_video(make: Make, tmp_path: Path) -> None:
    spec = make("t2v22")
    tensors = {"diffusion_model.blocks.0.ffn.0.lora_A.weight": torch.ones(2, 128),
               "diffusion_model.blocks.0.ffn.0.lora_B.weight": torch.ones(192, 2)}  # fmt: skip
    save_file(tensors, tmp_path / "lora.safetensors")
    (usual,), _ = frames(spec, [JOB])
    for expert in (None, "low"):
        (changed,), session = frames(spec, [JOB], loras=[Lora(tmp_path / "lora.safetensors", 0.1, expert)])
        assert changed.tobytes() != usual.tobytes()
        assert ["lora" in session.final["weights"][role] for role in spec.experts] == [expert is None, True]  # type: ignore[attr-defined]
    (nothing,), _ = frames(spec, [JOB], loras=[Lora(tmp_path / "lora.safetensors", 0.0)])
    assert nothing.tobytes() == usual.tobytes()


def test_a_quantised_file_runs_as_the_session_would_quantise_it(make: Make, tmp_path: Path) -> None:
    spec, cpu = make("ti2v"), load_profile("cpu")
    (usual,), _ = frames(spec, [JOB], cpu)
    shutil.copytree(spec.root, tmp_path / "q")  # type: ignore[arg-type]
    (tmp_path / "q" / "dit.safetensors").unlink()
    convert(open_checkpoint(spec.root / "dit.safetensors"), tmp_path / "q" / "dit.safetensors", "w8a8")  # type: ignore[operator]
    (kept,), _ = frames(spec, [JOB], cpu, root=tmp_path / "q")
    assert kept.tobytes() == usual.tobytes()


def test_a_small_budget_steps_down_and_a_tiny_one_refuses(make: Make) -> None:
    spec = make("t2v22")
    auto = plain().model_copy(update={"memory": plain().memory.model_copy(update={"offload": "auto"})})
    with Session.open(spec, auto, jobs=[JOB], memory_budget=2**40) as session:
        plan, needed = session.plan, session.memory.needed
        assert session.memory.residency.text == "freed"
        smallest = forecast(plan, spec, auto, Residency("first", "int8-channel", "swap", True, 1, 1)).needed
    assert smallest < needed
    (usual,), _ = frames(spec, [JOB], auto)
    (squeezed,), session = frames(spec, [JOB], auto, memory_budget=(smallest + needed) // 2)
    assert session.memory.residency != forecast(plan, spec, auto).residency
    assert np.abs(squeezed.astype(int) - usual.astype(int)).max() <= 2
    with pytest.raises(UnavailableError, match="needs"):
        Session.open(spec, auto, jobs=[JOB], memory_budget=smallest // 2)
