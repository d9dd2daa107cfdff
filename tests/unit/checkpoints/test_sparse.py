"""Block-sparse files: written, read back bit for bit, and refused where they are damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from turbort.checkpoints import open_checkpoint
from turbort.checkpoints.sparse import prune
from turbort.errors import CheckpointError, InputError
from turbort.quant import block_mask, quantize


@pytest.fixture
def source(tmp_path: Path) -> Path:
    g = torch.Generator().manual_seed(0)
    weights = {
        "blocks.0.ffn.0.weight": torch.randn(40, 24, generator=g),
        "blocks.0.ffn.0.bias": torch.randn(40, generator=g),
        "blocks.0.self_attn.q.weight": torch.randn(20, 12, generator=g),
        "head.head.weight": torch.randn(8, 24, generator=g),
    }
    save_file(weights, tmp_path / "src.safetensors")
    return tmp_path / "src.safetensors"


def stored(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.mark.parametrize("tile", [4, 8])
@pytest.mark.parametrize("precision", ["bsq8", "bsq4"])
def test_what_is_written_is_read_back(source: Path, tmp_path: Path, precision: str, tile: int) -> None:
    out = tmp_path / "out.safetensors"
    rows = prune(open_checkpoint(source), out, precision, tile=tile, density=0.4)
    assert {row.name for row in rows} == {"blocks.0.ffn.0.weight", "blocks.0.self_attn.q.weight"}
    found = open_checkpoint(out)
    assert found.dialect.name == "turbort-bsq"
    weight = open_checkpoint(source).entries["blocks.0.ffn.0.weight"].read()
    q = found.entries["blocks.0.ffn.0.weight"].read()
    want = quantize(weight, precision, tile=tile, mask=block_mask(weight, tile, 0.4))
    assert (q.scheme, q.tile) == (precision, tile)
    assert torch.equal(q.values, want.values)
    assert torch.equal(q.mask, want.mask)
    assert torch.equal(q.dequantize(torch.float32), want.dequantize())
    assert torch.equal(found.entries["head.head.weight"].read(), open_checkpoint(source).entries["head.head.weight"].read())
    kept = int(want.mask.sum())
    assert stored(out)[0]["blocks.0.ffn.0.weight_tiles"].nbytes == kept * tile * tile // (2 if precision == "bsq4" else 1)


def test_moments_choose_and_correct(source: Path, tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(1)
    moments = {}
    for name, k in (("blocks.0.ffn.0.weight", 24), ("blocks.0.self_attn.q.weight", 12)):
        x = torch.randn(200, k, generator=g) @ torch.randn(k, k, generator=g)
        moments[name] = x.t() @ x / 200
    out = tmp_path / "out.safetensors"
    rows = prune(open_checkpoint(source), out, "bsq8", tile=4, density=0.5, moments=moments)
    assert all(row.felt is not None and row.felt < row.nmse for row in rows)
    del moments["blocks.0.ffn.0.weight"]
    with pytest.raises(InputError, match="do not cover"):
        prune(open_checkpoint(source), out, "bsq8", moments=moments)


@pytest.mark.parametrize("harm", ["rows", "column", "scale", "shape", "missing"])
def test_a_damaged_file_is_refused(source: Path, tmp_path: Path, harm: str) -> None:
    out = tmp_path / "out.safetensors"
    prune(open_checkpoint(source), out, "bsq8", tile=4, density=0.4)
    tensors, metadata = stored(out)
    name = "blocks.0.ffn.0.weight"
    if harm == "rows":
        tensors[f"{name}_rows"][1] = 1000
    elif harm == "column":
        tensors[f"{name}_columns"][0] = 6
    elif harm == "scale":
        tensors[f"{name}_scale"][0] = float("nan")
    elif harm == "shape":
        about = json.loads(metadata["turbort"])
        about["shapes"][name] = [80, 24]
        metadata = {"turbort": json.dumps(about)}
    else:
        del tensors[f"{name}_columns"]
    save_file(tensors, out, metadata=metadata)
    with pytest.raises(CheckpointError, match=r"ffn\.0|block-sparse"):
        open_checkpoint(out).entries[name].read()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"precision": "w8a8"}, "bsq4"),
        ({"tile": 5}, "tile 5"),
        ({"density": 1.5}, "density 1.5"),
        ({"target": "x.pth"}, "safetensors"),
    ],
)
def test_wrong_settings_are_refused(source: Path, tmp_path: Path, options: dict, word: str) -> None:
    target = tmp_path / options.pop("target", "out.safetensors")
    with pytest.raises(InputError, match=word):
        prune(open_checkpoint(source), target, options.pop("precision", "bsq8"), **options)
    assert not target.exists()
