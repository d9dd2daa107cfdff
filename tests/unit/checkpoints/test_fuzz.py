"""Whatever bytes a file holds, opening and reading it succeeds or ends in a CheckpointError."""

import io
import json
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from tests.properties import examples
from tests.unit.checkpoints.makers import dit_shapes, fill, lightx2v, turbodiffusion
from turbort.checkpoints import open_checkpoint, stream
from turbort.errors import CheckpointError

SHAPES = dit_shapes(dim=8, ffn=12, layers=1, text=8)
# One folder serves all examples of a test; each writes its file anew.
FUZZ = examples(60, one_folder=True)


def pickled(tensors):
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def files():
    weights = fill(SHAPES)
    return {
        "safetensors": save(weights),
        "lightx2v": save(lightx2v(weights)),
        "pth": pickled(weights),
        "turbodiffusion": pickled(turbodiffusion(weights, quant=True)),
    }


def attempt(path, data):
    """Read everything; True when it worked. Any exception but CheckpointError fails the test."""
    path.write_bytes(data)
    refusal = None
    try:
        for _, value in stream(open_checkpoint(path), SHAPES):
            (value.values if hasattr(value, "scheme") else value).float().sum()
    except CheckpointError as error:
        refusal = str(error)
    assert refusal is None or str(path) in refusal
    return refusal is None


FORMS = st.sampled_from(["safetensors", "lightx2v", "pth", "turbodiffusion"])


def test_the_untouched_files_load(tmp_path, files):
    assert all(attempt(tmp_path / "w", data) for data in files.values())


@FUZZ
@given(data=st.binary(max_size=400), start=st.sampled_from([b"", b"PK\x03\x04", struct.pack("<Q", 64) + b"{", b"\x80\x02"]))
def test_random_bytes(tmp_path, data, start):
    assert not attempt(tmp_path / "w", start + data)


@FUZZ
@given(form=FORMS, share=st.floats(0, 0.999))
def test_truncated(tmp_path, files, form, share):
    assert not attempt(tmp_path / "w", files[form][: int(len(files[form]) * share)])


@FUZZ
@given(
    form=FORMS,
    at_end=st.booleans(),
    edits=st.lists(st.tuples(st.integers(0, 12000), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_mutated_headers(tmp_path, files, form, at_end, edits):
    """safetensors keeps its header in front, torch's zip its pickle in front and its directory at the end."""
    data = bytearray(files[form])
    for offset, value in edits:
        position = min(offset, len(data) - 1)
        data[-1 - position if at_end else position] = value
    attempt(tmp_path / "w", bytes(data))


def header_and_body(data):
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


ODD = st.one_of(
    st.none(),
    st.floats(),
    st.text(max_size=5),
    st.integers(-(2**70), 2**70),
    st.lists(st.integers(-9, 2**65), max_size=4),
    st.sampled_from(["F64", "F4", "I8", "U64"]),
)


@FUZZ
@given(pick=st.integers(0), field=st.sampled_from(["dtype", "shape", "data_offsets"]), value=ODD)
def test_safetensors_headers_with_odd_values(tmp_path, files, pick, field, value):
    header, body = header_and_body(files["lightx2v"])
    names = sorted(header)
    header[names[pick % len(names)]][field] = value
    encoded = json.dumps(header).encode()
    attempt(tmp_path / "w", struct.pack("<Q", len(encoded)) + encoded + body)


@FUZZ
@given(form=FORMS, old=st.integers(0), new=st.text(min_size=1, max_size=12) | st.sampled_from(sorted(SHAPES)))
def test_renamed_keys_never_load(tmp_path, form, old, new):
    weights = fill(SHAPES)
    stored = {
        "safetensors": dict,
        "pth": dict,
        "lightx2v": lightx2v,
        "turbodiffusion": lambda weights: turbodiffusion(weights, quant=True),
    }[form](weights)
    name = sorted(stored)[old % len(stored)]
    if new.encode("utf-8", "ignore").decode() != new or new == name:
        return
    stored[new] = stored.pop(name)
    data = pickled(stored) if form in ("pth", "turbodiffusion") else save(stored)
    assert not attempt(tmp_path / "w", data)


@FUZZ
@given(order=st.permutations(sorted(SHAPES)))
def test_permuted_files_load_the_same(tmp_path, order):
    weights = fill(SHAPES)
    (tmp_path / "w").write_bytes(pickled({name: weights[name] for name in order}))
    for name, value in stream(open_checkpoint(tmp_path / "w"), SHAPES):
        assert torch.equal(value, weights[name])


@FUZZ
@given(text=st.text(max_size=80) | st.recursive(st.none() | st.integers(), st.lists, max_leaves=6).map(json.dumps))
def test_random_indexes(tmp_path, text):
    (tmp_path / "w.safetensors.index.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path)


@FUZZ
@given(names=st.dictionaries(st.text(max_size=6), st.text(max_size=10), min_size=1, max_size=4))
def test_random_shard_names(tmp_path, names):
    (tmp_path / "w.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path)
