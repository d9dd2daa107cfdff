"""Files made to do harm or to mislead: other dtypes, pickles that call something, zip entries that leave their folder."""

import io
import pickle
import struct
import warnings
import zipfile

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save

from tests.properties import examples
from tests.unit.checkpoints.makers import dit_shapes, fill, lightx2v, turbodiffusion
from turbort.checkpoints import open_checkpoint, stream
from turbort.checkpoints.lora import Lora, fuse
from turbort.errors import CheckpointError

SHAPES = dit_shapes(dim=8, ffn=12, layers=1, text=8)
FUZZ = examples(50, one_folder=True)
DTYPES = st.sampled_from([torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.complex64,
                          torch.float8_e5m2, torch.float64])  # fmt: skip


def pickled(tensors):
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


def everything(path):
    return dict(stream(open_checkpoint(path), SHAPES))


@FUZZ
@example(form="lightx2v", pick=1, dtype=torch.uint8)  # which was taken for an int4 file, and every other linear blamed
@example(form="lightx2v", pick=1, dtype=torch.int8)  # its own
@given(form=st.sampled_from(["plain", "lightx2v", "turbodiffusion"]), pick=st.integers(0), dtype=DTYPES)
def test_another_dtype_is_refused_or_means_the_same(tmp_path, form, pick, dtype):
    """Where a file loads although a tensor changed its dtype, each value is what that dtype made of it."""
    stored = {"plain": dict, "lightx2v": lightx2v, "turbodiffusion": lambda w: turbodiffusion(w, quant=True)}[form](fill(SHAPES))
    name = sorted(stored)[pick % len(stored)]
    own = stored[name].dtype
    stored[name] = stored[name].to(dtype)
    (tmp_path / "w").write_bytes(pickled(stored) if form == "turbodiffusion" or dtype.is_complex else save(stored))
    refusal = None
    try:
        got = everything(tmp_path / "w")
    except CheckpointError as error:
        refusal = str(error)
    if refusal is not None:
        assert dtype != own
        assert name.rpartition(".")[0] in refusal
        return
    assert dtype.is_floating_point or dtype == own
    if form == "plain":
        torch.testing.assert_close(got[name].double(), stored[name].double())


class Call:
    """Pickles as a call of something that the file names."""

    def __init__(self, function, arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


CALLED = st.sampled_from(["os.system", "builtins.eval", "builtins.exec", "subprocess.Popen", "shutil.rmtree", "builtins.open",
                          "importlib.import_module", "torch.load", "torch.hub.load", "pickle.loads", "_io.open"])  # fmt: skip


@FUZZ
@given(target=CALLED, where=st.sampled_from(["value", "key", "wrapper", "top"]), protocol=st.integers(2, 5))
def test_nothing_that_a_pickle_names_is_called(tmp_path, target, where, protocol):
    module, _, name = target.rpartition(".")
    mark = tmp_path / "called"
    function = getattr(__import__(module, fromlist=[name]), name)
    bomb = Call(function, (f"touch {mark}",))
    weights = fill(SHAPES)
    content = {
        "value": {**weights, "x": bomb},
        "key": {**weights, bomb: torch.zeros(1)},
        "wrapper": {"state_dict": weights, "epoch": bomb},
        "top": bomb,
    }[where]
    buffer = io.BytesIO()
    torch.save(content, buffer, pickle_protocol=protocol)
    (tmp_path / "w").write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError):
        everything(tmp_path / "w")
    (tmp_path / "old").write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(CheckpointError):
        everything(tmp_path / "old")
    assert not mark.exists()


@FUZZ
@given(
    names=st.lists(
        st.sampled_from(
            ["../evil", "../../../../tmp/evil", "/evil", "..\\evil", "archive/../../evil", "C:\\evil", "archive/data/0"]
        )
        | st.text(min_size=1, max_size=8),
        min_size=1,
        max_size=4,
        unique=True,
    ),
    data=st.binary(max_size=20),
)
def test_zip_entries_never_become_files(tmp_path, names, data):
    """torch's file is read in place; whatever else its zip holds is neither unpacked nor believed."""
    folder = tmp_path / "deep" / "folder"
    folder.mkdir(parents=True, exist_ok=True)
    path, weights = folder / "w.pth", fill(SHAPES)
    path.write_bytes(pickled(weights))
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the same name twice is meant
        for name in names:
            archive.writestr(name.replace("\0", "0"), data)
    before = sorted(tmp_path.rglob("*"))
    try:
        got = everything(path)
    except CheckpointError:
        got = None
    assert got is None or "archive/data/0" not in names
    assert sorted(tmp_path.rglob("*")) == before
    assert got is None or all(torch.equal(got[name], weights[name]) for name in SHAPES)


@FUZZ
@given(share=st.floats(0, 0.999), flips=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=4))
def test_a_damaged_lora_is_refused(tmp_path, share, flips):
    path = tmp_path / "lora.safetensors"
    (tmp_path / "w").write_bytes(save(fill(SHAPES)))
    linear = "blocks.0.ffn.0"
    parts = fill({f"{linear}.lora_A.weight": (2, 8), f"{linear}.lora_B.weight": (12, 2)}, dtype=torch.float32)
    data = bytearray(save(parts))
    data = data[: int(len(data) * share)]
    for offset, value in flips:
        if data:
            data[offset % len(data)] = value
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError):
        dict(stream(fuse(open_checkpoint(tmp_path / "w"), [Lora(path)]), SHAPES))


@FUZZ
@given(length=st.integers(0, 2**64 - 1), body=st.binary(max_size=64))
def test_a_header_that_promises_any_length(tmp_path, length, body):
    (tmp_path / "w").write_bytes(struct.pack("<Q", length) + body)
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path / "w")
