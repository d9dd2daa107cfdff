"""LoRAs in every dialect give the same weights as the formula; strangers are refused by name."""

import pytest
import torch
from safetensors.torch import save_file

from tests.unit.checkpoints.makers import dit_shapes, fill, turbodiffusion
from turbort.checkpoints import open_checkpoint, stream
from turbort.checkpoints.diffusers import dit_to_diffusers
from turbort.checkpoints.lora import Lora, fuse, parse_lora
from turbort.errors import CheckpointError, InputError

SHAPES = dit_shapes(dim=16, ffn=24)
WEIGHTS = fill(SHAPES, dtype=torch.float32)
LINEARS = ("blocks.0.self_attn.q", "blocks.1.ffn.2")
RANK, ALPHA = 4, 8.0


def pairs():
    draw = torch.Generator().manual_seed(1)
    for linear in LINEARS:
        out, into = SHAPES[f"{linear}.weight"]
        yield linear, torch.randn(RANK, into, generator=draw), torch.randn(out, RANK, generator=draw)


def base(tmp_path, weights=WEIGHTS):
    save_file({name: value.contiguous() for name, value in weights.items()}, tmp_path / "w.safetensors")
    return open_checkpoint(tmp_path / "w.safetensors")


def lora(tmp_path, tensors, **options):
    save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_path / "lora.safetensors")
    return [Lora(tmp_path / "lora.safetensors", **options)]


NAMES = {
    "peft": lambda linear: (f"base_model.model.{linear}.lora_A.weight", f"base_model.model.{linear}.lora_B.weight"),
    "default": lambda linear: (f"transformer.{linear}.lora_A.default.weight", f"transformer.{linear}.lora_B.default.weight"),
    "diffusers": lambda linear: tuple(
        f"transformer.{dit_to_diffusers(f'{linear}.weight').removesuffix('.weight')}.lora_{side}.weight" for side in "AB"
    ),
    "lightx2v": lambda linear: (f"diffusion_model.{linear}.lora_down.weight", f"diffusion_model.{linear}.lora_up.weight"),
    "kohya": lambda linear: tuple(f"lora_unet_{linear.replace('.', '_')}.lora_{side}.weight" for side in ("down", "up")),
}


@pytest.mark.parametrize("dialect", NAMES)
@pytest.mark.parametrize("alpha", [None, ALPHA])
def test_dialects(tmp_path, dialect, alpha):
    tensors = {}
    for linear, down, up in pairs():
        first, second = NAMES[dialect](linear)
        tensors |= {first: down, second: up}
        if alpha is not None:
            tensors[f"{first.partition('.lora_')[0]}.alpha"] = torch.tensor(alpha)
    fused = fuse(base(tmp_path), lora(tmp_path, tensors, strength=0.5))
    got = dict(stream(fused, SHAPES))
    for linear, down, up in pairs():
        expected = WEIGHTS[f"{linear}.weight"] + 0.5 * (1 if alpha is None else alpha / RANK) * (up @ down)
        assert torch.allclose(got[f"{linear}.weight"], expected, atol=1e-6)
    changed = {name for name in SHAPES if not torch.equal(got[name], WEIGHTS[name])}
    assert changed == {f"{linear}.weight" for linear in LINEARS}


def test_whole_changes(tmp_path):
    tensors = {"diffusion_model.blocks.0.norm3.diff": torch.ones(16), "diffusion_model.blocks.0.ffn.0.diff_b": torch.ones(24)}
    got = dict(stream(fuse(base(tmp_path), lora(tmp_path, tensors)), SHAPES))
    assert torch.equal(got["blocks.0.norm3.weight"], WEIGHTS["blocks.0.norm3.weight"] + 1)
    assert torch.equal(got["blocks.0.ffn.0.bias"], WEIGHTS["blocks.0.ffn.0.bias"] + 1)


def test_quantised_weights_are_widened_first(tmp_path):
    stored = turbodiffusion(fill(SHAPES), quant=True)
    plain = dict(stream(base(tmp_path, stored), SHAPES))
    tensors = {}
    for linear, down, up in pairs():
        tensors |= {f"{linear}.lora_A.weight": down, f"{linear}.lora_B.weight": up}
    fused = fuse(base(tmp_path, stored), lora(tmp_path, tensors))
    got = dict(stream(fused, SHAPES))
    for linear, down, up in pairs():
        before = plain[f"{linear}.weight"].dequantize(torch.float32)
        assert torch.equal(got[f"{linear}.weight"], (before + up @ down).to(torch.bfloat16))
    assert fused.digest != base(tmp_path, stored).digest
    assert fused.digest != fuse(base(tmp_path, stored), lora(tmp_path, tensors, strength=2.0)).digest


def test_each_expert_gets_its_own_half(tmp_path):
    (linear, down, up), *_ = pairs()
    tensors = {f"{part}.{linear}.lora_{side}.weight": value * scale
               for part, scale in (("transformer", 1), ("transformer_2", 2))
               for side, value in (("A", down), ("B", up))}  # fmt: skip
    loras = lora(tmp_path, tensors)
    for second, scale in ((False, 1), (True, 4)):
        got = dict(stream(fuse(base(tmp_path), loras, second=second), SHAPES))
        assert torch.allclose(got[f"{linear}.weight"], WEIGHTS[f"{linear}.weight"] + scale * (up @ down), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update({"blocks.9.ffn.0.lora_A.weight": torch.ones(4, 16)}), r"fit no weight.*\n  - blocks\.9\.ffn\.0"),
        (lambda t: t.update({"blocks.0.ffn.0.dora_scale": torch.ones(4)}), r"blocks\.0\.ffn\.0\.dora_scale"),
        (lambda t: t.pop("blocks.0.self_attn.q.lora_B.weight"), "half of a pair"),
        (lambda t: t.update({"blocks.0.self_attn.q.lora_B.weight": torch.ones(17, 4)}), r"do not make \[16, 16\]"),
        (lambda t: t.update({"blocks.0.self_attn.q.diff_b": torch.ones(3)}), r"diff_b is \[3\]"),
    ],
)
def test_mutations(tmp_path, change, words):
    tensors = {}
    for linear, down, up in pairs():
        tensors |= {f"{linear}.lora_A.weight": down, f"{linear}.lora_B.weight": up}
    change(tensors)
    with pytest.raises(CheckpointError, match=words):
        fuse(base(tmp_path), lora(tmp_path, tensors))


def test_a_lora_is_no_model(tmp_path):
    save_file({"a.lora_A.weight": torch.ones(2, 2)}, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match="--lora"):
        open_checkpoint(tmp_path / "lora.safetensors")


@pytest.mark.parametrize(
    ("text", "path", "strength", "expert"),
    [
        ("a.safetensors", "a.safetensors", 1.0, None),
        ("a.safetensors:0.5", "a.safetensors", 0.5, None),
        ("high=a.safetensors:-1", "a.safetensors", -1.0, "high"),
        ("C:\\a.safetensors", "C:\\a.safetensors", 1.0, None),
    ],
)
def test_parse(text, path, strength, expert):
    parsed = parse_lora(text)
    assert (str(parsed.path), parsed.strength, parsed.expert) == (path, strength, expert)


def test_parse_needs_a_file():
    with pytest.raises(InputError):
        parse_lora("")
