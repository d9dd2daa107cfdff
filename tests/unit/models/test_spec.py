"""Model specs: published sizes, files and defaults, and the reading of model.yaml."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from turbort.errors import CheckpointError, InputError
from turbort.models.spec import MODELS, get_model, tiny_spec
from turbort.models.tiny import read_spec
from turbort.models.wan_dit import WanDit

NAMES = ("tiny", "wan2.1-t2v-1.3b", "wan2.1-t2v-14b", "wan2.1-i2v-14b", "wan2.2-t2v-a14b", "wan2.2-i2v-a14b", "wan2.2-ti2v-5b")
GOOD: dict[str, Any] = {
    "name": "mine",
    "title": "a small model",
    "dit": {"dim": 256, "ffn_dim": 1024, "heads": 2, "layers": 8, "sla": {"topk": 0.2, "block": [64, 128]}},
    "vae": {"base_dim": 16, "dim_mult": [1, 2, 4, 4], "mean": [0.5], "std": [2.0]},
    "text": {"dim": 128},
    "task": "t2v",
    "defaults": {"width": 128, "height": 64, "frames": 33, "fps": 16},
    "presets": {"rcm": {"steps": 4}},
    "sampler": "rcm",
    "files": {"dit": ["dit.safetensors"]},
    "prompt_grammar": "grammar.json",
}


def write(folder: Path, data: Any) -> Path:
    path = folder / "model.yaml"
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data), encoding="utf-8")
    return path


def test_the_models() -> None:
    assert tuple(MODELS) == NAMES
    assert len(MODELS) == len(NAMES)
    for name, spec in MODELS.items():
        assert spec.name == name
        assert spec.dit.head_dim == 128
        assert spec.sampler in spec.presets
        assert spec.dit.out_channels == spec.vae.z_dim
        assert (spec.defaults.frames - 1) % spec.vae.stride[0] == 0
        assert len(spec.vae.mean) == len(spec.vae.std)
        assert len(spec.vae.mean) in (spec.vae.z_dim, 0 if name == "tiny" else -1)
        if spec.experts:
            assert spec.boundary is not None
            assert set(spec.experts) <= set(spec.files)
        else:
            assert "dit" in spec.files
        assert {"vae", "text", "tokenizer"} <= set(spec.files)


def test_sizes_of_the_headline_models() -> None:
    small, image = MODELS["wan2.1-t2v-1.3b"], MODELS["wan2.2-ti2v-5b"]
    assert small.tokens(832, 480, 81) == 32760
    assert small.latent_shape(832, 480, 81) == (16, 21, 60, 104)
    assert image.latent_shape(1280, 704, 121) == (48, 31, 44, 80)
    assert tiny_spec().tokens(128, 128, 33) == 576


def test_samplers_of_a_model() -> None:
    turbo = MODELS["wan2.1-t2v-1.3b"]
    assert (turbo.sampler, turbo.preset.steps, turbo.preset.guidance) == ("rcm", 4, 1.0)
    assert MODELS["wan2.2-i2v-a14b"].preset.sigma_max == 200.0
    base = turbo.base()
    assert (base.sampler, base.preset.steps, base.preset.guidance, base.dit.sla) == ("unipc", 50, 6.0, None)
    assert tiny_spec().base() is tiny_spec()
    assert turbo.with_sampler("unipc").preset.steps == 50
    with pytest.raises(InputError, match="did you mean 'unipc'"):
        turbo.with_sampler("unip")  # type: ignore[arg-type]


def test_a_folder_with_a_model_yaml_is_a_model(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    spec = get_model(str(tmp_path))
    assert spec.name == "mine"
    assert spec.dit.sla is not None
    assert spec.dit.sla.block == (64, 128)
    assert spec.vae.mean == (0.5,)
    assert spec.files["dit"] == ("dit.safetensors",)
    assert spec.root == tmp_path
    assert spec.prompt_grammar == tmp_path / "grammar.json"
    assert spec.text.layers == 24


def test_unknown_models_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(InputError) as caught:
        get_model("wan2.1-t2v-1.3")
    assert "did you mean 'wan2.1-t2v-1.3b'" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tittle": "x"}, "unknown key tittle; did you mean 'title'?"),
        ({"dit": {**GOOD["dit"], "dims": 3}}, "unknown key dit.dims; did you mean 'dim'?"),
        ({"dit": {**GOOD["dit"], "sla": {"top": 1}}}, "unknown key dit.sla.top"),
        ({"presets": {"rcm": {"step": 4}}}, "unknown key presets.rcm.step"),
        ({"dit": {"dim": "wide"}}, "dit.dim: Input should be a valid integer"),
        ({"dit": {"dim": 256}}, "dit.ffn_dim: Field required"),
        ({"task": "x2v"}, "task: Input should be 't2v' or 'i2v'"),
        ({"sampler": "euler"}, "names sampler 'euler' but has no preset for it"),
        ({"root": "/elsewhere"}, "unknown key root"),
    ],
)
def test_a_wrong_model_yaml_names_the_key(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_spec(write(tmp_path, {**GOOD, **change}))
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "\ud800"[:0] or "name: !!python/object:os.system {}"])
def test_a_broken_model_yaml_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(CheckpointError):
        read_spec(write(tmp_path, text))
    with pytest.raises(CheckpointError, match="cannot read"):
        read_spec(tmp_path / "absent.yaml")


def test_the_specs_import_no_torch() -> None:
    code = "import sys, turbort.models.spec; print('torch' in sys.modules, 'pydantic' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "False"]


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_counted_without_building_the_model(name: str) -> None:
    spec = MODELS[name]
    with torch.device("meta"):
        model = WanDit(spec.dit)
    assert spec.dit.parameters == sum(parameter.numel() for parameter in model.parameters())
