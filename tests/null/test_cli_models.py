"""`turbort models NAME`, `turbort download`, `turbort plan --memory`, names of sizes."""

import json
import sys
import types

import pytest

from turbort.models.sizes import fit_picture, preset_size
from turbort.models.spec import MODELS
from turbort.request import parse_size

T2V, TI2V = MODELS["wan2.1-t2v-1.3b"], MODELS["wan2.2-ti2v-5b"]


@pytest.mark.parametrize(
    ("text", "model", "size"),
    [
        ("480p", T2V, (832, 480)),
        ("720p", T2V, (1280, 720)),
        ("16:9", T2V, (832, 480)),
        ("9:16", T2V, (480, 832)),
        ("720p 9:16", T2V, (720, 1280)),
        ("9:16,720P", T2V, (720, 1280)),
        ("1:1", T2V, (640, 640)),
        ("4:3/480p", T2V, (736, 544)),
        ("720p", TI2V, (1280, 704)),
        ("1:1", MODELS["tiny"], (128, 128)),
        ("wide", T2V, None),
        ("480p 720p", T2V, None),
        ("", T2V, None),
    ],
)
def test_names_of_sizes(text, model, size):
    assert preset_size(text, model) == size
    if size:
        assert parse_size(text, model) == size


PICTURES = [((1920, 1080), (832, 464)), ((1080, 1920), (464, 832)), ((500, 500), (624, 624)), ((10, 4000), (16, 12624))]


@pytest.mark.parametrize(("picture", "size"), PICTURES)
def test_a_picture_keeps_its_shape_within_the_area(picture, size):
    found = fit_picture(picture, T2V)
    assert found == size
    assert found[0] * found[1] <= 832 * 480 or found[0] == 16


def test_a_model_says_where_its_files_are_expected(cli):
    ended = cli("models", "wan2.2-t2v-a14b", "--json")
    data = json.loads(ended.out)
    files = {row["file"]: row for row in data["files"]}
    assert set(files) == {"high", "low", "vae", "text", "tokenizer"}
    assert "high_noise_model/" in files["high"]["where"]
    assert files["vae"]["from"] == "Wan-AI/Wan2.2-T2V-A14B"
    assert data["sizes"]["720p"] == "1280x720"
    assert "Wan2.1_VAE.pth" in cli("models", "wan2.2-t2v-a14b").out
    assert cli("models", "wan").code == 2


def test_download_takes_the_transformer_and_the_rest(cli, monkeypatch):
    calls = []
    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = lambda **options: calls.append(options)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    ended = cli("download", "wan2.1-t2v-1.3b", "--to", "here")
    assert (ended.code, ended.out) == (0, "here\n")
    turbo, base = calls
    assert (turbo["repo_id"], turbo["allow_patterns"]) == (
        "TurboDiffusion/TurboWan2.1-T2V-1.3B-480P",
        ["TurboWan2.1-T2V-1.3B-480P*.pth", "*.pth"],
    )
    assert base["repo_id"] == "Wan-AI/Wan2.1-T2V-1.3B"
    assert "Wan2.1_VAE.pth" in base["allow_patterns"]
    assert not any("diffusion_pytorch_model" in pattern for pattern in base["allow_patterns"])
    calls.clear()
    cli("download", "wan2.1-t2v-1.3b", "--kind", "base")
    (only,) = calls
    assert {"diffusion_pytorch_model*.safetensors", "Wan2.1_VAE.pth"} <= set(only["allow_patterns"])
    assert "*.pth" not in only["allow_patterns"]


def test_download_without_package_or_network(cli, monkeypatch):
    module = types.ModuleType("huggingface_hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    ended = cli("download", "wan2.2-ti2v-5b")
    assert (ended.code, "pip install huggingface_hub" in ended.err) == (3, True)

    def fail(**_):
        raise OSError("no route to host\nsecond line")

    module.snapshot_download = fail
    ended = cli("download", "wan2.2-ti2v-5b")
    assert ended.code == 3
    assert "cannot download from Wan-AI/Wan2.2-TI2V-5B: no route to host\n" in ended.err
    assert cli("download", "tiny").code == 2
    assert cli("download", "wan2.2-ti2v-5b", "--kind", "turbo").code == 2
    assert "Wan2.2_VAE.pth" in cli("download", "wan2.2-ti2v-5b", "--dry-run").out


def test_plan_shows_memory(cli):
    base = ("plan", "--model", "wan2.1-t2v-1.3b", "--profile", "rtx4090", "--on", "null")
    data = json.loads(cli(*base, "--memory", "--json").out)["memory"]
    assert [row["stage"] for row in data["stages"]] == ["load", "text", "sample", "decode"]
    # int8 matrices of 30 blocks and what surrounds them: between one and two bytes per parameter.
    assert 1.35e9 < data["stages"][0]["weights"] < 2.2e9
    small = json.loads(cli(*base, "--memory-budget", "8GiB", "--json").out)["memory"]
    assert small["needed"] <= small["budget"] == 7 * 2**30  # the profile reserves a GiB
    assert small["residency"]["text"] == "first"
    text = cli(*base, "--memory-budget", "8GiB").out
    assert "text encoder before the transformer is loaded" in text
    refused = cli(*base, "--memory-budget", "100MiB")
    assert (refused.code, "wan2.1-t2v-1.3b at 832x480, 81 frames needs" in refused.err) == (3, True)
    assert cli(*base, "--memory-budget", "lots").code == 2
