"""GGUF: every block form against the formulas of the format, written by a small writer of its own; damage refused."""

import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import examples
from tests.unit.checkpoints.makers import dit_shapes, fill, is_quantised_linear
from turbort.checkpoints import open_checkpoint, stream
from turbort.errors import CheckpointError

SHAPES = dit_shapes(dim=32, ffn=64, layers=1)
KINDS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "BF16": 30}


def text(value):
    return struct.pack("<Q", len(value.encode())) + value.encode()


def encoded(array, kind):
    """Bytes of a tensor, and the floats that they stand for, block by block in plain Python numbers."""
    if kind == "F32":
        return array.astype("<f4").tobytes(), array.astype(np.float32)
    if kind == "F16":
        return array.astype("<f2").tobytes(), array.astype(np.float16).astype(np.float32)
    if kind == "BF16":
        value = torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
        return value.view(torch.int16).numpy().tobytes(), value.float().numpy()
    rng, raw, meant = np.random.default_rng(0), b"", []
    for _ in range(array.size // 32):
        d, m = np.float16(rng.uniform(0.01, 1)), np.float16(rng.uniform(-1, 1))
        bits = {"Q8_0": 8, "Q4_0": 4, "Q4_1": 4, "Q5_0": 5, "Q5_1": 5}[kind]
        q = rng.integers(-128, 128, 32) if bits == 8 else rng.integers(0, 2**bits, 32)
        raw += d.tobytes() + (m.tobytes() if kind.endswith("_1") else b"")
        if bits == 8:
            raw += q.astype(np.int8).tobytes()
        else:
            if bits == 5:
                raw += struct.pack("<I", sum(int(v >> 4) << i for i, v in enumerate(q)))
            raw += bytes(int(q[i] & 15) | int(q[i + 16] & 15) << 4 for i in range(16))
        centre = {"Q4_0": 8, "Q5_0": 16}.get(kind, 0)
        meant += [float(np.float32(d) * (v - centre) + (np.float32(m) if kind.endswith("_1") else 0)) for v in q]
    return raw, np.array(meant, np.float32).reshape(array.shape)


def build(tensors, kinds, fields=b"", count=1):
    """A GGUF file in version 3, and what each tensor means."""
    head, data, meant = b"", b"", {}
    for name, array in tensors.items():
        raw, meant[name] = encoded(array, kinds(name))
        head += text(name) + struct.pack("<I", array.ndim) + b"".join(struct.pack("<Q", n) for n in array.shape[::-1])
        head += struct.pack("<IQ", KINDS[kinds(name)], len(data))
        data += raw + b"\0" * (-len(raw) % 32)
    start = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), count)
    start += text("general.architecture") + struct.pack("<I", 8) + text("wan") + fields + head
    return start + b"\0" * (-len(start) % 32) + data, meant


def model(kind, prefix=""):
    arrays = {prefix + name: value.float().numpy() for name, value in fill(SHAPES, dtype=torch.float32).items()}
    return build(arrays, lambda name: kind if is_quantised_linear(name.removeprefix(prefix)) else "F32")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_every_form(tmp_path, kind, prefix):
    raw, meant = model(kind, prefix)
    (tmp_path / "w.gguf").write_bytes(raw)
    checkpoint = open_checkpoint(tmp_path / "w.gguf")
    assert checkpoint.dialect.name == "gguf"
    got = dict(stream(checkpoint, SHAPES))
    for name in SHAPES:
        assert torch.equal(got[name].float(), torch.from_numpy(meant[prefix + name].copy())), name
    assert checkpoint.entries["blocks.0.ffn.0.weight"].stored == {"F32": "F32"}.get(kind, kind)


def test_flattened_tensors_get_their_shape_back(tmp_path):
    """ComfyUI-GGUF keeps the axes of tensors that it flattens in the header."""
    arrays = {name: value.float().numpy() for name, value in fill(SHAPES, dtype=torch.float32).items()}
    patch = arrays["patch_embedding.weight"]
    arrays["patch_embedding.weight"] = patch.reshape(-1, 256)
    field = text("comfy.gguf.orig_shape.patch_embedding.weight") + struct.pack("<IIQ", 9, 5, 5) + struct.pack("<5i", *patch.shape)
    (tmp_path / "w.gguf").write_bytes(build(arrays, lambda _: "F32", field, 2)[0])
    got = dict(stream(open_checkpoint(tmp_path / "w.gguf"), SHAPES))
    assert torch.equal(got["patch_embedding.weight"], torch.from_numpy(patch.copy()))


def test_forms_that_are_not_read_are_named(tmp_path):
    raw, _ = model("Q8_0")
    at = raw.index(b"blocks.0.ffn.0.weight") + len(b"blocks.0.ffn.0.weight") + 4 + 16
    (tmp_path / "w.gguf").write_bytes(raw[:at] + struct.pack("<I", 12) + raw[at + 4 :])
    with pytest.raises(CheckpointError, match=r"blocks\.0\.ffn\.0\.weight in Q4_K"):
        open_checkpoint(tmp_path / "w.gguf")


def test_a_truncated_file_names_the_tensor(tmp_path):
    raw, _ = model("Q8_0")
    (tmp_path / "w.gguf").write_bytes(raw[:-40])
    with pytest.raises(CheckpointError, match=r"head\.head\.bias is there beyond the end"):
        open_checkpoint(tmp_path / "w.gguf")


@examples(60)
@given(st.data())
def test_damaged_headers_are_refused_or_read(tmp_path_factory, data):
    """Any byte of the header may be anything: the reader refuses or gives tensors, and never another exception."""
    raw = bytearray(build({"a.weight": np.ones((2, 32), np.float32)}, lambda _: "Q4_0")[0])
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(4, 120))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("gguf") / "w.gguf"
    path.write_bytes(bytes(raw[: data.draw(st.integers(33, len(raw)))]))
    try:
        checkpoint = open_checkpoint(path)
        for entry in checkpoint.entries.values():
            entry.read()
    except CheckpointError:
        pass
