"""`turbort inspect` and `turbort quantize` on small files."""

import json

import pytest
import torch
from safetensors.torch import save_file

from turbort.models.spec import MODELS
from turbort.models.wan_dit import WanDit


@pytest.fixture(scope="module")
def shapes():
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in WanDit(MODELS["tiny"].dit).state_dict().items()}


@pytest.fixture
def file(tmp_path, shapes):
    save_file({name: torch.randn(shape).to(torch.bfloat16) for name, shape in shapes.items()}, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def test_inspect_names_the_model(cli, file, shapes):
    ended = cli("inspect", file, "--json")
    data = json.loads(ended.out)
    assert ended.code == 0
    assert (data["dialect"], data["part"]) == ("wan" if MODELS["tiny"].dit.sla is None else "turbodiffusion", "dit")
    assert data["models"] == ["tiny"]
    assert data["parameters"] == sum(torch.Size(shape).numel() for shape in shapes.values())
    assert {row["precision"] for row in data["roles"]} == {"bf16"}


def test_inspect_lists_differences(cli, tmp_path, shapes):
    weights = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    del weights["blocks.1.ffn.0.bias"]
    weights |= {"blocks.0.odd": torch.zeros(1), "head.head.bias": torch.zeros(3)}
    save_file(weights, tmp_path / "w.safetensors")
    ended = cli("inspect", tmp_path / "w.safetensors")
    assert "nearest dit of tiny, 3 differences" in ended.out
    assert "missing: blocks.1.ffn.0.bias" in ended.out
    assert "unexpected: blocks.0.odd" in ended.out
    assert "wrong shape: head.head.bias is [3]" in ended.out


def test_quantize_then_inspect(cli, file, tmp_path):
    ended = cli("quantize", file, tmp_path / "q.pth", "--precision", "w8a8-block128", "--dialect", "turbodiffusion")
    assert (ended.code, ended.out.strip()) == (0, str(tmp_path / "q.pth"))
    assert "ffn.in" in ended.err
    assert "sha256" in ended.err
    data = json.loads(cli("inspect", tmp_path / "q.pth", "--json").out)
    assert data["dialect"] == "turbodiffusion-quant"
    assert data["models"] == ["tiny"]
    assert {row["precision"] for row in data["roles"] if row["role"] == "ffn.in"} == {"int8-block128", "bf16"}


def test_mistakes_end_with_2(cli, file):
    assert cli("inspect", "none.safetensors").code == 2
    assert cli("quantize", file, "x.pth").code == 2
    ended = cli("quantize", file, "x.safetensors", "--precision", "w9")
    assert ended.code == 2
    assert "known precisions: fp8, w4a8" in ended.err
    assert "fix: " in ended.err
    ended = cli("prune", file, "x.safetensors", "--density", "2")
    assert ended.code == 2
    assert "density 2.0 is not above 0" in ended.err
    assert "tile" not in ended.err.splitlines()[0]
    assert "fix: " in ended.err
