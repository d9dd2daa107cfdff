"""Every dialect: recognised, translated to the model's names, and kept bit for bit."""

import pytest
import torch
from safetensors.torch import save_file

from tests.unit.checkpoints.makers import dit_shapes, fill, is_quantised_linear, lightx2v, turbodiffusion, umt5_shapes
from turbort.checkpoints import load_into, open_checkpoint, stream
from turbort.checkpoints.diffusers import dit_to_diffusers, dit_to_wan, vae_to_wan
from turbort.checkpoints.prefixes import strip_prefixes
from turbort.checkpoints.umt5 import to_hf, to_native
from turbort.errors import CheckpointError
from turbort.quant.qtensor import QTensor


def saved(path, tensors, form):
    if form == "pth":
        torch.save(tensors, path / "w.pth")
        return path / "w.pth"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "w.safetensors")
    return path / "w.safetensors"


def everything(checkpoint, shapes, **options):
    return dict(stream(checkpoint, shapes, **options))


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


FORMS = ("safetensors", "pth")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("image", [False, True])
def test_wan(tmp_path, form, image):
    shapes = dit_shapes(image=image, dim=16, ffn=24)
    weights = fill(shapes)
    checkpoint = open_checkpoint(saved(tmp_path, weights, form))
    assert checkpoint.dialect.name == "wan"
    got = everything(checkpoint, shapes)
    assert list(got) == list(shapes), "weights come in the order in which the model asks for them"
    assert all(same(got[name], weights[name]) for name in shapes)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_turbodiffusion_plain(tmp_path, form, dtype):
    """SLA's projection may be stored in either dtype; the patch embedding is flat."""
    shapes = dit_shapes(sla=True, dim=16, ffn=24)
    weights = fill(shapes)
    weights = {name: value.to(dtype) if "proj_l" in name else value for name, value in weights.items()}
    stored = turbodiffusion(weights)
    assert stored["patch_embedding.weight"].shape == (16, 64)
    checkpoint = open_checkpoint(saved(tmp_path, stored, form))
    assert checkpoint.dialect.name == "turbodiffusion"
    got = everything(checkpoint, shapes)
    assert all(same(got[name], weights[name]) for name in shapes)


@pytest.mark.parametrize("form", FORMS)
def test_turbodiffusion_quantised_is_kept_bit_for_bit(tmp_path, form):
    shapes = dit_shapes(sla=True)
    weights = fill(shapes)
    stored = turbodiffusion(weights, quant=True)
    assert stored["blocks.0.ffn.0.scale"].shape == (3, 2)
    checkpoint = open_checkpoint(saved(tmp_path, stored, form))
    assert checkpoint.dialect.name == "turbodiffusion-quant"
    got = everything(checkpoint, shapes)
    assert sum(isinstance(value, QTensor) for value in got.values()) == 10 * 2
    for name in filter(is_quantised_linear, shapes):
        linear = name.removesuffix(".weight")
        q = got[name]
        assert q.scheme == "int8-block128"
        assert q.dtype is torch.bfloat16
        assert same(q.values, stored[f"{linear}.int8_weight"])
        assert same(q.scales, stored[f"{linear}.scale"])
        rows, columns = shapes[name]
        scale = stored[f"{linear}.scale"].repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
        assert torch.equal(q.dequantize(torch.float32), stored[f"{linear}.int8_weight"].float() * scale)
    assert same(got["patch_embedding.weight"], weights["patch_embedding.weight"])


@pytest.mark.parametrize(("scheme", "dialect"), [("int8-channel", "lightx2v-int8"), ("fp8-channel", "lightx2v-fp8")])
@pytest.mark.parametrize("flat_scale", [False, True])
def test_lightx2v_is_kept_bit_for_bit(tmp_path, scheme, dialect, flat_scale):
    shapes = dit_shapes(sla=True, dim=16, ffn=24)
    weights = fill(shapes, dtype=torch.float32)
    stored = lightx2v(weights, scheme)
    given = {name: value.flatten() if flat_scale and name.endswith("_scale") else value for name, value in stored.items()}
    checkpoint = open_checkpoint(saved(tmp_path, given, "safetensors"))
    assert checkpoint.dialect.name == dialect
    got = everything(checkpoint, shapes)
    for name in shapes:
        if is_quantised_linear(name):
            assert got[name].scheme == scheme
            assert got[name].dtype is torch.float32
            assert same(got[name].values, stored[name])
            assert same(got[name].scales, stored[name.removesuffix("weight") + "weight_scale"])
        else:
            assert same(got[name], weights[name])


def test_lightx2v_umt5(tmp_path):
    """A storage and a naming that are both other than the default."""
    shapes = umt5_shapes()
    weights = fill(shapes)
    checkpoint = open_checkpoint(saved(tmp_path, lightx2v(weights), "safetensors"))
    assert checkpoint.dialect.name == "lightx2v-int8 umt5"
    got = everything(checkpoint, {to_hf(name): shape for name, shape in shapes.items()})
    assert isinstance(got["encoder.block.1.layer.1.DenseReluDense.wo.weight"], QTensor)
    assert same(got["shared.weight"], weights["token_embedding.weight"])


@pytest.mark.parametrize("image", [False, True])
def test_diffusers_transformer(tmp_path, image):
    shapes = dit_shapes(image=image, dim=16, ffn=24)
    weights = fill(shapes)
    stored = {dit_to_diffusers(name): value for name, value in weights.items()}
    assert not set(stored) & {name for name in shapes if name.startswith("blocks.")}
    checkpoint = open_checkpoint(saved(tmp_path, stored, "safetensors"))
    assert checkpoint.dialect.name == "diffusers"
    got = everything(checkpoint, shapes)
    assert all(same(got[name], weights[name]) for name in shapes)


def test_diffusers_names_are_those_of_the_real_class():
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        model = WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=16, text_dim=64, ffn_dim=24, num_layers=2, image_dim=1280,
            added_kv_proj_dim=16,
        )  # fmt: skip
    real = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    ours = {dit_to_diffusers(name): shape for name, shape in dit_shapes(image=True, dim=16, ffn=24).items()}
    assert ours == real
    assert all(dit_to_diffusers(dit_to_wan(name)) == name for name in real)


def wan_vae_layers(res_blocks, *, nested):
    """Wan's layer names per side and level: residual blocks, then a resampler unless the level is the last."""
    for side, leaf, count in (("encoder", "down", res_blocks), ("decoder", "up", res_blocks + 1)):
        index = 0
        for level in range(4):
            for position in range(count + (level < 3)):
                kind = "resample.1" if position == count else "residual"
                number = f"{level}.{leaf}samples.{position}" if nested else str(index)
                yield f"{side}.{leaf}samples.{number}.{kind}"
                index += 1


@pytest.mark.parametrize("res_blocks", [1, 2])
@pytest.mark.parametrize("nested", [False, True])
def test_diffusers_vae_names_are_translated_one_to_one(res_blocks, nested):
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        model = AutoencoderKLWan(base_dim=8, num_res_blocks=res_blocks, is_residual=nested)
    real = model.state_dict()
    names = vae_to_wan(real)
    assert set(names) == set(real)
    assert len(set(names.values())) == len(real)
    layers = {name for side in names.values() for name in [side] if "samples." in name}
    expected = set(wan_vae_layers(res_blocks, nested=nested))
    assert {name.partition(".residual")[0] + ".residual" if ".residual" in name else name.rpartition(".")[0]
            for name in layers if "shortcut" not in name and "time_conv" not in name} == expected  # fmt: skip
    rest = {name.rpartition(".")[0] for name in names.values() if "samples." not in name}
    assert rest == {"conv1", "conv2"} | {
        f"{side}.{part}"
        for side in ("encoder", "decoder")
        for part in (
            "conv1", "head.0", "head.2", "middle.1.norm", "middle.1.to_qkv", "middle.1.proj",
            *(f"middle.{n}.residual.{k}" for n in (0, 2) for k in (0, 2, 3, 6)),
        )
    }  # fmt: skip


def test_diffusers_vae_loads_into_the_model(tmp_path):
    """The same tensors reach the same places: a number per tensor instead of random values."""
    from diffusers import AutoencoderKLWan

    from turbort.models.spec import VaeConfig
    from turbort.models.wan_vae import WanVae

    theirs = AutoencoderKLWan(base_dim=8, num_res_blocks=1)
    stored = {name: torch.full_like(value, number) for number, (name, value) in enumerate(theirs.state_dict().items())}
    checkpoint = open_checkpoint(saved(tmp_path, stored, "safetensors"))
    assert checkpoint.dialect.name == "diffusers-vae"
    with torch.device("meta"):
        ours = WanVae(VaeConfig(base_dim=8, res_blocks=1))
    load_into(ours, checkpoint)
    names = vae_to_wan(stored)
    state = ours.state_dict()
    assert {name: float(value.flatten()[0]) for name, value in state.items()} == {
        names[name]: float(value.flatten()[0]) for name, value in stored.items()
    }


def test_umt5_in_both_namings(tmp_path):
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.device("meta"):
        model = UMT5EncoderModel(UMT5Config(vocab_size=40, d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2))
    expected = {name: tuple(value.shape) for name, value in model.named_parameters()}
    everything_named = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    weights = fill(umt5_shapes())
    for name, tensors in (("umt5", weights), ("umt5-hf", {to_hf(name): value for name, value in weights.items()})):
        checkpoint = open_checkpoint(saved(tmp_path, tensors, "safetensors"))
        assert checkpoint.dialect.name == name
        for wanted in (expected, everything_named):
            got = everything(checkpoint, wanted)
            assert set(got) == set(wanted)
            assert all(same(got[key], weights[to_native(key)]) for key in wanted)
    assert all(to_native(to_hf(name)) == name for name in weights)


def test_umt5_stored_under_the_tied_name_alone(tmp_path):
    weights = {to_hf(name): value for name, value in fill(umt5_shapes()).items()}
    weights["encoder.embed_tokens.weight"] = weights.pop("shared.weight")
    checkpoint = open_checkpoint(saved(tmp_path, weights, "safetensors"))
    got = everything(checkpoint, {to_hf(name): shape for name, shape in umt5_shapes().items()})
    assert same(got["shared.weight"], weights["encoder.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("net.blocks.0.norm3.weight", "blocks.0.norm3.weight"),
        ("model.diffusion_model.head.head.bias", "head.head.bias"),
        ("diffusion_model.head.head.bias", "head.head.bias"),
        ("_orig_mod.module.head.head.bias", "head.head.bias"),
        ("blocks.0._checkpoint_wrapped_module.norm3.weight", "blocks.0.norm3.weight"),
        ("net.blocks.0._fsdp_wrapped_module._orig_mod.norm3.weight", "blocks.0.norm3.weight"),
        ("encoder.block.0.layer.0.layer_norm.weight", "encoder.block.0.layer.0.layer_norm.weight"),
        ("net", "net"),
    ],
)
def test_prefixes(name, clean):
    assert strip_prefixes([name]) == {name: clean}


@pytest.mark.parametrize("prefix", ["net.", "model.diffusion_model."])
@pytest.mark.parametrize("make", [dict, lambda weights: turbodiffusion(weights, quant=True), lightx2v])
def test_prefixed_files_load(tmp_path, prefix, make):
    shapes = dit_shapes(dim=128, ffn=128, layers=1)
    stored = {prefix + name: value for name, value in make(fill(shapes)).items()}
    assert set(everything(open_checkpoint(saved(tmp_path, stored, "pth")), shapes)) == set(shapes)


def test_training_wrapper(tmp_path):
    """The merged training file from which TurboDiffusion's own are made."""
    shapes = dit_shapes(dim=16, ffn=24, layers=1)
    stored = {"state_dict": {f"net.{name}": value for name, value in fill(shapes).items()}}
    assert set(everything(open_checkpoint(saved(tmp_path, stored, "pth")), shapes)) == set(shapes)


def test_two_names_that_become_one_are_refused(tmp_path):
    weights = {"net.head.head.bias": torch.zeros(4), "head.head.bias": torch.zeros(4)}
    with pytest.raises(CheckpointError, match="same name") as caught:
        open_checkpoint(saved(tmp_path, weights, "safetensors"))
    assert "net.head.head.bias" in str(caught.value)


@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_cast_fp8_is_widened_without_loss(tmp_path, stored):
    weights = {"a.weight": torch.randn(8, 8).to(stored)}
    got = everything(open_checkpoint(saved(tmp_path, weights, "safetensors")), {"a.weight": (8, 8)})["a.weight"]
    assert got.dtype is torch.bfloat16
    assert torch.equal(got.float(), weights["a.weight"].float())


def test_float64_is_narrowed(tmp_path):
    weights = {"a.weight": torch.randn(8, 8, dtype=torch.float64)}
    got = everything(open_checkpoint(saved(tmp_path, weights, "safetensors")), {"a.weight": (8, 8)})["a.weight"]
    assert same(got, weights["a.weight"].float())


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"a.weight_global_scale": torch.zeros(1)}, "nvfp4"),
        ({"a.lora_A.weight": torch.zeros(1)}, "LoRA"),
        ({"a.deq_scale": torch.zeros(1)}, "quant_model_description"),
    ],
)
def test_known_dialects_that_are_not_read_are_named(tmp_path, extra, words):
    with pytest.raises(CheckpointError, match=words) as caught:
        open_checkpoint(saved(tmp_path, {"a.weight": torch.zeros(2, 2), **extra}, "safetensors"))
    assert caught.value.fix
