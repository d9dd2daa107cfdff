"""Conversion: what is written reads back as it was meant, in the exact form of the dialect, or nothing is left behind."""

import gzip
import hashlib
import json
from math import prod
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit.checkpoints.makers import dit_shapes, fill, is_quantised_linear, turbodiffusion, umt5_shapes
from turbort.checkpoints import open_checkpoint, stream
from turbort.checkpoints.convert import announced, convert
from turbort.checkpoints.dialect import Entry
from turbort.checkpoints.layouts import layout
from turbort.errors import InputError
from turbort.precision import PRECISIONS
from turbort.quant.qtensor import QTensor
from turbort.quant.schemes import quantize

KEYS = json.loads(gzip.decompress((Path(__file__).parents[2] / "data" / "wan_keys.json.gz").read_bytes()))
SHAPES = dit_shapes(sla=True)
PAIRS = [
    (precision, dialect)
    for dialect, precisions in {
        "turbort": ("w8a8", "w8a8-block128", "fp8", "w4a8"),
        "turbodiffusion": ("w8a8-block128",),
        "compressed-tensors": ("w8a8", "fp8", "w4a8"),
    }.items()
    for precision in precisions
]


def source(tmp_path, weights):
    save_file(weights, tmp_path / "src.safetensors")
    return open_checkpoint(tmp_path / "src.safetensors")


@pytest.mark.parametrize(("precision", "dialect"), PAIRS)
def test_every_pair_reads_back(tmp_path, precision, dialect):
    weights = fill(SHAPES)
    written = convert(source(tmp_path, weights), tmp_path / "dst.safetensors", precision, dialect)
    got = dict(stream(open_checkpoint(written.path), SHAPES))
    scheme = PRECISIONS[precision].weight_scheme
    errors = {layer.name: layer.nmse for layer in written.layers}
    assert set(errors) == set(filter(is_quantised_linear, SHAPES))
    for name in SHAPES:
        if name not in errors:
            assert torch.equal(got[name], weights[name].to(got[name].dtype))
            continue
        expected = quantize(weights[name].float(), scheme)
        assert isinstance(got[name], QTensor)
        assert got[name].scheme == scheme
        assert torch.equal(got[name].values.float(), expected.values.float())
        assert torch.equal(got[name].scales, expected.scales)
        wide = weights[name].float()
        assert errors[name] == pytest.approx(float((expected.dequantize() - wide).square().sum() / wide.square().sum()))
    manifest = json.loads(written.manifest.read_text())
    assert manifest["sha256"] == hashlib.sha256(written.path.read_bytes()).hexdigest() == written.sha256
    assert [row["name"] for row in manifest["layers"]] == [layer.name for layer in written.layers]


TURBO = [("turbo-wan2.1-1.3b", 1185), ("turbo-wan2.1-14b", 1575), ("turbo-wan2.2-a14b", 1575)]


@pytest.mark.parametrize(("model", "count"), TURBO)
def test_turbodiffusion_has_exactly_its_keys_shapes_and_dtypes(model, count):
    """From the published list of the plain files and the rule of the quantised ones, at full size and without values."""
    expected = {}
    for name, shape in KEYS[model].items():
        linear = name.removesuffix(".weight")
        if is_quantised_linear(name):
            expected[f"{linear}.int8_weight"] = (tuple(shape), torch.int8)
            expected[f"{linear}.scale"] = (tuple(-(-size // 128) for size in shape), torch.float32)
        else:
            wide = any(part in name for part in ("norm_q", "norm_k", "norm3"))
            expected[name] = (tuple(shape), torch.float32 if wide else torch.bfloat16)
    assert len(expected) == count
    shapes = {name: tuple(shape) for name, shape in KEYS[model].items()}
    flat = shapes["patch_embedding.weight"]
    shapes["patch_embedding.weight"] = (flat[0], flat[1] // 4, 1, 2, 2)
    entries = {name: Entry(shape, torch.bfloat16, lambda: torch.empty(0), (name,)) for name, shape in shapes.items()}
    found = announced(entries, layout("turbodiffusion", "w8a8-block128"))
    assert {name: (header.shape, header.dtype) for name, header in found.items()} == expected
    assert prod(found["patch_embedding.weight"].shape) == prod(shapes["patch_embedding.weight"])


def test_turbodiffusion_pth_is_a_plain_state_dict_and_keeps_its_own_codes(tmp_path):
    stored = turbodiffusion(fill(SHAPES), quant=True)
    written = convert(source(tmp_path, stored), tmp_path / "again.pth", "w8a8-block128", "turbodiffusion")
    loaded = torch.load(written.path, weights_only=True)
    assert set(loaded) == set(stored)
    assert all(torch.equal(loaded[name].float(), stored[name].float()) for name in stored)
    assert all(layer.kept and layer.nmse == 0 for layer in written.layers)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.pth", "again.pth.manifest.json", "src.safetensors"]


def test_umt5_is_quantised_too(tmp_path):
    written = convert(source(tmp_path, fill(umt5_shapes())), tmp_path / "t5.safetensors", "w8a8")
    assert len(written.layers) == 2 * 7
    assert open_checkpoint(written.path).dialect.name == "lightx2v-int8 umt5-hf"
    with pytest.raises(InputError, match="text encoders"):
        convert(source(tmp_path, fill(umt5_shapes())), tmp_path / "t5.pth", "w8a8-block128", "turbodiffusion")


@pytest.mark.parametrize(
    ("name", "precision", "dialect", "words"),
    [
        ("x.bin", "w8a8", "turbort", "what .* is to be"),
        ("x.pth", "w8a8", "turbort", "stored as safetensors"),
        ("x.safetensors", "w8a8", "turbodiffusion", "has no form for w8a8"),
        ("x.safetensors", "w8a8-block128", "compressed-tensors", "has no form"),
        ("x.safetensors", "int8", "turbort", "unknown precision"),
        ("x.safetensors", "w8a8", "gguf", "unknown dialect"),
        ("none/x.safetensors", "w8a8", "turbort", "does not exist"),
    ],
)
def test_refusals(tmp_path, name, precision, dialect, words):
    with pytest.raises(InputError, match=words):
        convert(source(tmp_path, fill(SHAPES)), tmp_path / name, precision, dialect)


def test_nothing_is_left_when_a_weight_is_damaged(tmp_path):
    weights = fill(SHAPES)
    weights["blocks.1.ffn.2.weight"][0, 0] = torch.inf
    (tmp_path / "dst.safetensors").write_bytes(b"before")
    with pytest.raises(InputError, match=r"blocks\.1\.ffn\.2\.weight holds values that are not finite"):
        convert(source(tmp_path, weights), tmp_path / "dst.safetensors", "w8a8")
    assert (tmp_path / "dst.safetensors").read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dst.safetensors", "src.safetensors"]


def test_the_file_is_aligned_and_readable_by_the_library(tmp_path):
    written = convert(source(tmp_path, fill(SHAPES)), tmp_path / "dst.safetensors", "w4a8", "compressed-tensors")
    loaded = load_file(written.path)
    assert loaded["blocks.0.ffn.0.weight_shape"].tolist() == list(SHAPES["blocks.0.ffn.0.weight"])
    raw = written.path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    table = json.loads(raw[8 : 8 + length])
    sizes = {"I64": 8, "I32": 4, "F32": 4, "BF16": 2}
    assert (8 + length) % 8 == 0
    assert all(row["data_offsets"][0] % sizes[row["dtype"]] == 0 for name, row in table.items() if name != "__metadata__")
