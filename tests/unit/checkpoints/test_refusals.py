"""Files that are wrong in one way each: a CheckpointError that says which, with a fix, and no code executed."""

import json
import os
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from tests.unit.checkpoints.makers import dit_shapes, fill, lightx2v, turbodiffusion
from turbort.checkpoints import load_into, open_checkpoint, stream
from turbort.errors import CheckpointError

SHAPES = dit_shapes(dim=16, ffn=24)


@pytest.fixture
def weights():
    return fill(SHAPES)


def opened(tmp_path, tensors):
    save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_path / "w.safetensors")
    return open_checkpoint(tmp_path / "w.safetensors")


def refused(path, words):
    with pytest.raises(CheckpointError, match=words) as caught:
        open_checkpoint(path)
    assert caught.value.exit_code == 2
    assert caught.value.fix
    return str(caught.value)


# What the model needs against what the file holds


def test_missing_unexpected_and_wrong_shapes_are_all_listed_before_anything_is_read(tmp_path, weights):
    del weights["head.head.bias"]
    weights["head.extra"] = torch.zeros(1)
    weights["blocks.1.ffn.0.bias"] = torch.zeros(7)
    checkpoint = opened(tmp_path, weights)
    for entry in checkpoint.entries.values():
        object.__setattr__(entry, "read", lambda: pytest.fail("a weight was read"))
    with pytest.raises(CheckpointError) as caught:
        stream(checkpoint, SHAPES)
    text = str(caught.value)
    assert "1 missing, 1 unexpected, 1 wrong shape" in text
    assert "missing: head.head.bias" in text
    assert "unexpected: head.extra" in text
    assert "blocks.1.ffn.0.bias is [7], the model has [24]" in text


def test_ten_are_listed_and_the_rest_counted(tmp_path, weights):
    for name in [name for name in weights if name.startswith("blocks.0.")]:
        del weights[name]
    checkpoint = opened(tmp_path, weights)
    with pytest.raises(CheckpointError) as caught:
        stream(checkpoint, SHAPES)
    lines = [line for line in str(caught.value).splitlines() if "missing: " in line]
    assert "27 missing" in str(caught.value)
    assert len(lines) == 11
    assert lines[-1].endswith("and 17 more")


def test_renamed_tensors_are_both_missing_and_unexpected(tmp_path, weights):
    weights["blocks.0.selfattn.q.weight"] = weights.pop("blocks.0.self_attn.q.weight")
    with pytest.raises(CheckpointError, match="1 missing, 1 unexpected"):
        stream(opened(tmp_path, weights), SHAPES)


def test_transposed_weight_is_refused(tmp_path, weights):
    weights["blocks.0.ffn.0.weight"] = weights["blocks.0.ffn.0.weight"].t().contiguous()
    with pytest.raises(CheckpointError, match=r"is \[16, 24\], the model has \[24, 16\]"):
        stream(opened(tmp_path, weights), SHAPES)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
def test_integers_without_a_scale_are_refused(tmp_path, weights, dtype):
    weights["blocks.0.ffn.0.weight"] = torch.zeros(24, 16, dtype=dtype)
    with pytest.raises(CheckpointError, match="wrong dtype"):
        stream(opened(tmp_path, weights), SHAPES)


def test_ignore_and_optional(tmp_path, weights):
    weights["encoder.conv1.weight"] = torch.zeros(1)
    del weights["head.head.bias"]
    checkpoint = opened(tmp_path, weights)
    for options in ({}, {"ignore": ["encoder.*"]}, {"optional": ["head.*"]}):
        with pytest.raises(CheckpointError):
            stream(checkpoint, SHAPES, **options)
    names = [name for name, _ in stream(checkpoint, SHAPES, ignore=["encoder.*"], optional=["head.*"])]
    assert names == [name for name in SHAPES if name != "head.head.bias"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("blocks.0.ffn.0.scale"), r"blocks\.0\.ffn\.0\.scale is missing"),
        (lambda w: w.update({"blocks.0.ffn.0.scale": torch.ones(2, 1)}), r"not float \[1, 1\]"),
        (lambda w: w.update({"blocks.0.ffn.0.scale": torch.ones(1, 1, dtype=torch.int32)}), "int32"),
        (lambda w: w.update({"blocks.0.ffn.0.int8_weight": torch.ones(24, 16)}), "not an int8 matrix"),
        (lambda w: w.update({"blocks.0.ffn.0.weight": torch.ones(24, 16)}), "both"),
    ],
)
def test_incomplete_turbodiffusion_linears(tmp_path, weights, change, words):
    stored = turbodiffusion(weights, quant=True)
    change(stored)
    with pytest.raises(CheckpointError, match=words):
        opened(tmp_path, stored)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("blocks.0.ffn.0.weight"), r"blocks\.0\.ffn\.0\.weight is missing"),
        (lambda w: w.update({"blocks.0.ffn.0.weight_scale": torch.ones(1)}), r"not float \[24, 1\]"),
        (lambda w: w.update({"blocks.0.ffn.0.weight": torch.ones(24, 16)}), "not an int8 or float8_e4m3fn matrix"),
        (lambda w: w.update({"blocks.0.ffn.0.weight": torch.ones(24, 16, dtype=torch.float8_e5m2)}), "e5m2"),
    ],
)
def test_incomplete_lightx2v_linears(tmp_path, weights, change, words):
    stored = lightx2v(weights)
    change(stored)
    with pytest.raises(CheckpointError, match=words):
        opened(tmp_path, stored)


def test_a_scale_that_is_no_number_is_refused_when_read(tmp_path, weights):
    stored = lightx2v(weights)
    stored["blocks.0.ffn.0.weight_scale"][3] = float("nan")
    with pytest.raises(CheckpointError, match="not all finite"):
        list(stream(opened(tmp_path, stored), SHAPES))


# Files


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"GGUF\x03\0\0\0", "the header claims"),
        (b"\xff" * 64, "cannot read weights"),
        (b"{}", "cannot read weights"),
        (pickle.dumps({"a": 1}), "outside torch's zip format"),
        (b"PK\x03\x04" + bytes(100), "cannot read weights"),
    ],
)
def test_files_that_are_no_weights(tmp_path, content, words):
    (tmp_path / "w.safetensors").write_bytes(content)
    refused(tmp_path / "w.safetensors", words)


@pytest.mark.parametrize("form", ["safetensors", "pth"])
@pytest.mark.parametrize("keep", [0.999, 0.5, 0.01])
def test_truncated_files(tmp_path, weights, form, keep):
    path = tmp_path / f"w.{form}"
    save_file(weights, path) if form == "safetensors" else torch.save(weights, path)
    os.truncate(path, int(path.stat().st_size * keep))
    refused(path, "cannot read weights|damaged")


def test_paths_that_hold_nothing(tmp_path):
    refused(tmp_path / "none.pth", "does not exist")
    refused(tmp_path, "no weights")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "neither a file nor a folder")


def test_file_that_may_not_be_read(tmp_path, weights, monkeypatch):
    save_file(weights, tmp_path / "w.safetensors")

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", denied)
    refused(tmp_path / "w.safetensors", "Permission denied")


# Pickles


class Payload:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("where", ["value", "key", "root", "wrapped"])
def test_hostile_pickle_is_not_executed(tmp_path, where):
    mark = tmp_path / "executed"
    payload = Payload(mark)
    content = {
        "value": {"a.weight": torch.zeros(2), "b.weight": payload},
        "key": {(payload,): torch.zeros(2)},
        "root": payload,
        "wrapped": {"state_dict": {"a.weight": torch.zeros(2)}, "optimizer": payload},
    }[where]
    torch.save(content, tmp_path / "w.pth")
    text = refused(tmp_path / "w.pth", "not a plain state dict")
    assert not mark.exists()
    assert len(text.splitlines()) == 2, "one sentence and a fix"
    torch.load(tmp_path / "w.pth", weights_only=False)
    assert mark.exists(), "the payload of this test must be a working one"


def test_environment_cannot_switch_the_safe_unpickler_off(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"a": Payload(tmp_path / "executed")}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "not a plain state dict")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (torch.zeros(3), "holds a Tensor"),
        ([torch.zeros(3)], "holds a list"),
        ({"a": torch.zeros(3), "epoch": 7}, "epoch is a int"),
        ({1: torch.zeros(3)}, "key 1 is not a string"),
        ({"a": torch.zeros(3).to_sparse()}, "not a dense tensor"),
        ({"a": torch.zeros(3, device="meta")}, "not a dense tensor"),
    ],
)
def test_pickles_that_are_no_state_dict(tmp_path, content, words):
    torch.save(content, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", words)


def test_compressed_zip_is_refused_because_it_cannot_be_mapped(tmp_path):
    torch.save({"a": torch.zeros(4096)}, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as old, zipfile.ZipFile(tmp_path / "c.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    refused(tmp_path / "c.pth", "compressed")


# Shards and folders


def sharded(folder, weights, *, index=True):
    names = list(weights)
    parts = {"w-00001-of-00002.safetensors": names[::2], "w-00002-of-00002.safetensors": names[1::2]}
    for file, keys in parts.items():
        save_file({key: weights[key] for key in keys}, folder / file)
    weight_map = {key: file for file, keys in parts.items() for key in keys}
    if index:
        (folder / "w.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


def rewrite(folder, weight_map):
    (folder / "w.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("index", [True, False])
def test_shards(tmp_path, weights, index):
    sharded(tmp_path, weights, index=index)
    for path in [tmp_path, tmp_path / "w.safetensors.index.json"] if index else [tmp_path]:
        checkpoint = open_checkpoint(path)
        assert len(checkpoint.files) == 2
        got = dict(stream(checkpoint, SHAPES))
        assert all(torch.equal(got[name], weights[name]) for name in SHAPES)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", "a\\b", "a\0b"])
def test_index_must_not_leave_its_folder(tmp_path, weights, name):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"stolen.weight": torch.zeros(2)}, tmp_path / "secret.safetensors")
    rewrite(folder, sharded(folder, weights) | {"stolen.weight": name})
    refused(folder, "not plain file names")


def test_missing_shard_is_named(tmp_path, weights):
    sharded(tmp_path, weights)
    (tmp_path / "w-00002-of-00002.safetensors").unlink()
    assert "w-00002-of-00002.safetensors" in refused(tmp_path, "1 are not there")


def test_index_that_promises_too_much(tmp_path, weights):
    rewrite(tmp_path, sharded(tmp_path, weights) | {"ghost.weight": "w-00001-of-00002.safetensors"})
    assert "ghost.weight" in refused(tmp_path, "names that its shards lack")


NO_INDEXES = ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}', '{"weight_map": {}}', "[" * 10**5]


@pytest.mark.parametrize("text", NO_INDEXES, ids=range(len(NO_INDEXES)))
def test_index_that_is_none(tmp_path, text):
    (tmp_path / "w.safetensors.index.json").write_text(text)
    refused(tmp_path, "cannot read weights")


def test_one_name_in_two_files(tmp_path):
    for file in ("a.safetensors", "b.safetensors"):
        save_file({"x.weight": torch.zeros(1)}, tmp_path / file)
    assert "x.weight is in a.safetensors and b.safetensors" in refused(tmp_path, "two files")


def test_ambiguous_and_nested_folders(tmp_path):
    torch.save({}, tmp_path / "a.pth")
    torch.save({}, tmp_path / "b.pth")
    assert "a.pth" in refused(tmp_path, "several sets of weights")
    (tmp_path / "pipeline" / "transformer").mkdir(parents=True)
    assert "transformer" in refused(tmp_path / "pipeline", "no weights")


def test_folder_with_one_pickle(tmp_path, weights):
    torch.save(weights, tmp_path / "a.pth")
    assert set(open_checkpoint(tmp_path).entries) == set(SHAPES)


def test_load_into_refuses_a_model_of_another_size(tmp_path, weights):
    from turbort.models.spec import DitConfig
    from turbort.models.wan_dit import WanDit

    with torch.device("meta"):
        model = WanDit(DitConfig(dim=32, ffn_dim=24, heads=2, layers=2, text_dim=64))
    with pytest.raises(CheckpointError, match="do not fit the model"):
        load_into(model, opened(tmp_path, weights))
    assert all(parameter.is_meta for parameter in model.parameters())
