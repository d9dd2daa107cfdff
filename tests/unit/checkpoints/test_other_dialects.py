"""ComfyUI, compressed-tensors, ModelOpt, msmodelslim and turbort's int4: round trips, and mutations refused by name."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tests.unit.checkpoints.makers import dit_shapes, fill, is_quantised_linear
from turbort.checkpoints import open_checkpoint, stream
from turbort.checkpoints.comfy import hadamard
from turbort.checkpoints.compressed import pack_words, unpack_words
from turbort.errors import CheckpointError
from turbort.quant.int4 import pack_nibbles
from turbort.quant.qtensor import QTensor
from turbort.quant.schemes import quantize

SHAPES = dit_shapes(dim=16, ffn=24)
LINEAR = "blocks.0.ffn.0"
LINEARS = [name.removesuffix(".weight") for name in SHAPES if is_quantised_linear(name)]


def written(folder, tensors, metadata=None, **files):
    folder.mkdir(exist_ok=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "w.safetensors", metadata)
    for name, data in files.items():
        (folder / f"{name}.json").write_text(json.dumps(data))
    return folder / "w.safetensors"


def read(path):
    checkpoint = open_checkpoint(path)
    return checkpoint.dialect.name, dict(stream(checkpoint, SHAPES))


def config_bytes(config):
    return torch.tensor(list(json.dumps(config).encode()), dtype=torch.uint8)


def per_tensor(weights, dtype, scale_name):
    """Every linear as one scale and rounded values; also the exact floats these stand for."""
    stored, meant = dict(weights), dict(weights)
    for linear in LINEARS:
        wide = weights[f"{linear}.weight"].float()
        top = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}[dtype]
        scale = wide.abs().max() / top
        values = (wide / scale).round().to(dtype) if dtype is torch.int8 else (wide / scale).to(dtype)
        stored[f"{linear}.weight"], stored[linear + scale_name] = values, scale
        meant[f"{linear}.weight"] = values.float() * scale
    return stored, meant


def agree(got, meant, scheme):
    for name in SHAPES:
        value = got[name]
        if is_quantised_linear(name) and scheme:
            assert isinstance(value, QTensor)
            assert value.scheme == scheme
            assert torch.equal(value.dequantize(torch.float32), meant[name])
        else:
            assert torch.equal(value, meant[name].to(value.dtype))


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_comfy_scaled_fp8(tmp_path, prefix):
    stored, meant = per_tensor(fill(SHAPES), torch.float8_e4m3fn, ".scale_weight")
    stored |= {f"{linear}.scale_input": torch.ones(()) for linear in LINEARS}
    stored["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    dialect, got = read(written(tmp_path, {prefix + name: value for name, value in stored.items()}))
    assert dialect == "comfy"
    agree(got, meant, "fp8-channel")


@pytest.mark.parametrize(
    ("dtype", "name", "scheme"),
    [
        (torch.float8_e4m3fn, "float8_e4m3fn", "fp8-channel"),
        (torch.float8_e5m2, "float8_e5m2", None),
        (torch.int8, "int8_tensorwise", "int8-channel"),
    ],
)
@pytest.mark.parametrize("where", ["tensors", "metadata"])
def test_comfy_quant(tmp_path, dtype, name, scheme, where):
    stored, meant = per_tensor(fill(SHAPES), dtype, ".weight_scale")
    metadata = None
    if where == "tensors":
        stored |= {f"{linear}.comfy_quant": config_bytes({"format": name}) for linear in LINEARS}
    else:
        layers = {f"model.diffusion_model.{linear}": {"format": name} for linear in LINEARS}
        metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    stored = {f"model.diffusion_model.{key}": value for key, value in stored.items()}
    dialect, got = read(written(tmp_path, stored, metadata))
    assert dialect == "comfy"
    agree(got, meant, scheme)


def test_comfy_rotated_int8_is_turned_back(tmp_path):
    """With groups of 4, W H rounded, times H again, is W up to int8's step."""
    assert torch.equal(hadamard(16) @ hadamard(16), torch.eye(16))
    assert hadamard(4).mul(2).tolist() == [[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]]
    weights = fill(SHAPES, dtype=torch.float32)
    stored = dict(weights)
    for linear in LINEARS:
        wide = weights[f"{linear}.weight"]
        q = quantize((wide.view(len(wide), -1, 4) @ hadamard(4)).view(wide.shape), "int8-channel")
        stored[f"{linear}.weight"], stored[f"{linear}.weight_scale"] = q.values, q.scales
        config = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 4}
        stored[f"{linear}.comfy_quant"] = config_bytes(config)
    _, got = read(written(tmp_path, stored))
    for linear in LINEARS:
        assert torch.allclose(got[f"{linear}.weight"], weights[f"{linear}.weight"], atol=0.05)


def described(**config):
    return lambda s: s.update({f"{LINEAR}.comfy_quant": config_bytes(config)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop(f"{LINEAR}.weight_scale"), r"blocks\.0\.ffn\.0\.weight_scale is missing"),
        (lambda s: s.update({f"{LINEAR}.weight_scale": torch.ones(3)}), r"weight_scale is torch.float32 \[3\]"),
        (described(format="nvfp4"), r"blocks\.0\.ffn\.0 is in format 'nvfp4'"),
        (described(format="int8_tensorwise"), "its format int8_tensorwise says"),
        (described(format="float8_e4m3fn", odd=1), "does not know: odd"),
        (described(format="int8_tensorwise", convrot=True, convrot_groupsize=5), "rotated in groups of 5"),
        (lambda s: s.update({f"{LINEAR}.comfy_quant": torch.tensor([123], dtype=torch.uint8)}), "is not JSON"),
        (lambda s: s.update({f"{LINEAR}.comfy_quant": torch.ones(2)}), "not a text"),
        (lambda s: s.pop(f"{LINEAR}.comfy_quant"), r"blocks\.0\.ffn\.0\.weight_scale has no \.comfy_quant"),
    ],
)
def test_comfy_mutations(tmp_path, change, words):
    stored, _ = per_tensor(fill(SHAPES), torch.float8_e4m3fn, ".weight_scale")
    stored |= {f"{linear}.comfy_quant": config_bytes({"format": "float8_e4m3fn"}) for linear in LINEARS}
    change(stored)
    with pytest.raises(CheckpointError, match=words):
        read(written(tmp_path, stored))


COMPRESSED = {"quantization_config": {"quant_method": "compressed-tensors", "format": "int-quantized"}}
MODELOPT = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}


@pytest.mark.parametrize("rowwise", [False, True])
def test_compressed_tensors_int8(tmp_path, rowwise):
    weights = fill(SHAPES)
    stored, meant = per_tensor(weights, torch.int8, ".weight_scale")
    if rowwise:
        for linear in LINEARS:
            q = quantize(weights[f"{linear}.weight"], "int8-channel")
            stored[f"{linear}.weight"], stored[f"{linear}.weight_scale"] = q.values, q.scales
            stored[f"{linear}.weight_zero_point"] = torch.zeros(len(q.values), 1, dtype=torch.int8)
            meant[f"{linear}.weight"] = q.dequantize(torch.float32)
    dialect, got = read(written(tmp_path, stored, config=COMPRESSED))
    assert dialect == "compressed-tensors"
    agree(got, meant, "int8-channel")


def test_modelopt_fp8(tmp_path):
    stored, meant = per_tensor(fill(SHAPES), torch.float8_e4m3fn, ".weight_scale")
    stored |= {f"{linear}.input_scale": torch.ones(()) for linear in LINEARS}
    dialect, got = read(written(tmp_path, stored, hf_quant_config=MODELOPT))
    assert dialect == "compressed-tensors"
    agree(got, meant, "fp8-channel")


def int4(weights, form):
    stored, meant = dict(weights), dict(weights)
    for linear in LINEARS:
        q = quantize(weights[f"{linear}.weight"], "int4-group128")
        meant[f"{linear}.weight"] = q.dequantize(torch.float32)
        stored[f"{linear}.weight_scale"] = q.scales
        if form == "packed":
            del stored[f"{linear}.weight"]
            stored[f"{linear}.weight_packed"] = pack_words(q.values)
            stored[f"{linear}.weight_shape"] = torch.tensor(q.values.shape)
        else:
            stored[f"{linear}.weight"] = pack_nibbles(q.values)
    return stored, meant


@pytest.mark.parametrize(("form", "name"), [("packed", "compressed-tensors"), ("nibbles", "turbort-int4")])
def test_int4(tmp_path, form, name):
    stored, meant = int4(fill(SHAPES), form)
    dialect, got = read(written(tmp_path, stored))
    assert dialect == name
    agree(got, meant, "int4-group128")


def test_words_hold_every_nibble_and_the_sign():
    codes = torch.tensor([[-8, -7, -1, 0, 1, 6, 7, -8, 7]], dtype=torch.int8)
    words = pack_words(codes)
    assert words.dtype is torch.int32
    assert words[0, 0] & 0xF == 0  # -8 + 8, lowest nibble first
    assert torch.equal(unpack_words(words, 9), codes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop(f"{LINEAR}.weight_shape"), r"blocks\.0\.ffn\.0\.weight_shape is missing"),
        (lambda s: s.update({f"{LINEAR}.weight_scale": torch.ones(24, 2)}), r"not float \[24, 1\]"),
        (lambda s: s.update({f"{LINEAR}.weight_shape": torch.tensor([24, 99])}), r"says \[24, 99\]"),
        (lambda s: s.update({f"{LINEAR}.weight_zero_point": torch.ones(24, 1)}), "weight_zero_point is there"),
    ],
)
def test_packed_mutations(tmp_path, change, words):
    stored, _ = int4(fill(SHAPES), "packed")
    change(stored)
    with pytest.raises(CheckpointError, match=words):
        read(written(tmp_path, stored))


def test_zero_points_that_are_not_zero(tmp_path):
    stored, _ = per_tensor(fill(SHAPES), torch.int8, ".weight_scale")
    stored[f"{LINEAR}.weight_zero_point"] = torch.ones(24, 1, dtype=torch.int8)
    with pytest.raises(CheckpointError, match=r"blocks\.0\.ffn\.0\.weight_zero_point is not zero"):
        read(written(tmp_path, stored, config=COMPRESSED))


def modelslim(weights):
    stored, meant, types = dict(weights), dict(weights), {"model_quant_type": "W8A8_DYNAMIC"}
    for linear in LINEARS:
        q = quantize(weights[f"{linear}.weight"], "int8-channel")
        new = {"weight": q.values, "weight_scale": q.scales, "weight_offset": torch.zeros(len(q.values), 1)}
        stored |= {f"{linear}.{leaf}": value for leaf, value in new.items()}
        types |= {f"{linear}.{leaf}": "W8A8_DYNAMIC" for leaf in new}
        meant[f"{linear}.weight"] = q.dequantize(torch.float32)
    return stored, meant, {**dict.fromkeys(stored, "FLOAT"), **types}


def test_modelslim(tmp_path):
    stored, meant, types = modelslim(fill(SHAPES))
    dialect, got = read(written(tmp_path, stored, quant_model_description_w8a8_dynamic=types))
    assert dialect == "msmodelslim"
    agree(got, meant, "int8-channel")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s, t: t.update({f"{LINEAR}.weight": "W4A4"}), r"blocks\.0\.ffn\.0\.weight is W4A4"),
        (lambda s, t: t.update({f"{LINEAR}.weight": "W8A8"}), r"blocks\.0\.ffn\.0\.deq_scale is missing"),
        (lambda s, t: t.pop(f"{LINEAR}.bias"), r"does not describe\n  - blocks\.0\.ffn\.0\.bias"),
        (lambda s, t: s.pop(f"{LINEAR}.weight_scale"), r"blocks\.0\.ffn\.0\.weight_scale is missing"),
        (lambda s, t: s.update({f"{LINEAR}.weight_offset": torch.ones(24, 1)}), "weight_offset is not zero"),
        (lambda s, t: s.update({f"{LINEAR}.weight": torch.ones(24, 16)}), "says int8"),
    ],
)
def test_modelslim_mutations(tmp_path, change, words):
    stored, _, types = modelslim(fill(SHAPES))
    change(stored, types)
    with pytest.raises(CheckpointError, match=words):
        read(written(tmp_path, stored, quant_model_description=types))


def static(weights, *, packed, offset):
    """W8A8 with one scale and offset for the inputs, which the stored bias and scale have taken in."""
    stored, meant, types = dict(weights), dict(weights), {}
    for linear in LINEARS:
        q, width = quantize(weights[f"{linear}.weight"], "int8-channel"), torch.tensor([0.037])
        deq = (q.scales * width).flatten()
        bias = stored.pop(f"{linear}.bias") / deq - offset * q.values.sum(dim=1, dtype=torch.int64)
        new = {
            "weight": q.values,
            "deq_scale": deq.view(torch.int32).to(torch.int64) if packed else deq,
            "input_scale": width,
            "input_offset": torch.tensor([offset], dtype=torch.int8),
            "quant_bias": bias.round().to(torch.int32),
        }
        stored |= {f"{linear}.{leaf}": value for leaf, value in new.items()}
        types |= {f"{linear}.{leaf}": "W8A8" for leaf in new}
        meant[f"{linear}.weight"] = q
    return stored, meant, {**dict.fromkeys(stored, "FLOAT"), **types}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("offset", [0, -17])
def test_modelslim_static(tmp_path, packed, offset):
    weights = fill(SHAPES)
    stored, meant, types = static(weights, packed=packed, offset=offset)
    dialect, got = read(written(tmp_path, stored, quant_model_description_w8a8=types))
    assert dialect == "msmodelslim"
    for linear in LINEARS:
        q = got[f"{linear}.weight"]
        assert torch.equal(q.values, meant[f"{linear}.weight"].values)  # the codes bit for bit
        torch.testing.assert_close(q.scales, meant[f"{linear}.weight"].scales)
        step = float((q.scales * 0.037).max())  # quant_bias is a whole number of these, and bf16 keeps 8 bits
        torch.testing.assert_close(got[f"{linear}.bias"].float(), weights[f"{linear}.bias"].float(), atol=step, rtol=2**-7)


@pytest.mark.parametrize(
    ("leaf", "value", "words"),
    [
        ("quant_bias", torch.zeros(24), r"quant_bias is torch\.float32 \[24\], not 24 of torch\.int32"),
        ("deq_scale", torch.ones(23), r"deq_scale is torch\.float32 \[23\]"),
        ("deq_scale", torch.zeros(24), "not all positive"),
        ("input_scale", torch.tensor([float("nan")]), "not all positive"),
        ("weight", torch.ones(24, 16), "says an int8 matrix"),
    ],
)
def test_modelslim_static_mutations(tmp_path, leaf, value, words):
    stored, _, types = static(fill(SHAPES), packed=False, offset=3)
    stored[f"{LINEAR}.{leaf}"] = value
    with pytest.raises(CheckpointError, match=words):
        read(written(tmp_path, stored, quant_model_description=types))
