"""Prompts, umT5 and CLIP: cleaning, tokens, padding, and the encoders against transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors
from torch import Tensor

from tests.properties import examples
from turbort.errors import CheckpointError
from turbort.models import text
from turbort.models.clip import ClipConfig, ClipVision
from turbort.models.config import DitConfig, TextConfig
from turbort.models.image import first_frame_times, hold_first_frame, image_condition, load_clip
from turbort.models.prompt import Tokenizer, clean_prompt
from turbort.models.spec import MODELS
from turbort.models.text import TextEncoder
from turbort.models.umt5 import Umt5, bounded, buckets
from turbort.models.vae import build_vae
from turbort.quant.qtensor import QTensor
from turbort.quant.schemes import quantize

SMALL = TextConfig(dim=32, ffn_dim=48, heads=2, head_dim=24, layers=2, vocab=40, text_len=20)
WORDS = ("<pad>", "</s>", "<unk>", "a", "red", "cat", "dog", "and", "runs")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  a\tcat \n runs ", "a cat runs"),
        ("cats &amp;amp; dogs &lt;3", "cats & dogs <3"),
        ("\u201ca cat\u2019s tail\u201d", '"a cat\'s tail"'),
        ("\uff21\uff0c\u3000B", "A, B"),
        ("\ufb01ne", "fine"),
        ("cafe\u0301", "caf\u00e9"),
        ("a\x00b\x1b[31mc\ufeff", "abc"),
        ("", ""),
        ("\u4e00\u53ea\u732b", "\u4e00\u53ea\u732b"),
    ],
)
def test_cleaning(text: str, expected: str) -> None:
    assert clean_prompt(text) == expected


@examples(60)
@given(st.text(max_size=60))
def test_cleaned_text_is_one_line_and_stays_as_it_is(text: str) -> None:
    cleaned = clean_prompt(text)
    assert cleaned == " ".join(cleaned.split())
    if "&" not in cleaned:
        assert clean_prompt(cleaned) == cleaned


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    backend = Backend(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    path = tmp_path / "tokenizer.json"
    backend.save(str(path))
    return path


def test_tokens_end_with_the_end_token_and_fit(tokenizer: Path) -> None:
    short = Tokenizer(tokenizer, 4)
    assert short.ids("  a&nbsp;red   cat") == [3, 4, 5, 1]
    assert short.ids("a red cat and a dog") == [3, 4, 5, 1]
    assert short.ids("") == [1]
    assert short.size == len(WORDS)


def test_a_broken_tokenizer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(CheckpointError, match=r"cannot read the tokenizer .*tokenizer\.json"):
        Tokenizer(path, 4).ids("a")


def small_umt5(seed: int = 0) -> Umt5:
    torch.manual_seed(seed)
    model = Umt5(SMALL).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter += torch.randn_like(parameter) * 0.2
    return model


def test_umt5_matches_transformers() -> None:
    modeling = pytest.importorskip("transformers.models.umt5.modeling_umt5")
    from transformers.models.umt5.configuration_umt5 import UMT5Config

    theirs = modeling.UMT5EncoderModel(
        UMT5Config(
            vocab_size=SMALL.vocab,
            d_model=SMALL.dim,
            d_kv=SMALL.head_dim,
            d_ff=SMALL.ffn_dim,
            num_layers=SMALL.layers,
            num_heads=SMALL.heads,
        )
    ).eval()
    ours = small_umt5()
    state = ours.state_dict()
    theirs.load_state_dict({**state, "encoder.embed_tokens.weight": state["shared.weight"]})
    ids, mask = torch.randint(0, SMALL.vocab, (2, 200)), torch.ones(2, 200, dtype=torch.long)
    mask[0, 90:] = 0
    with torch.no_grad():
        expected = theirs(ids, mask).last_hidden_state
    result = ours(ids, mask)
    for row, length in ((0, 90), (1, 200)):
        a, b = result[row, :length], expected[row, :length]
        assert (a - b).abs().max() / b.abs().max() < 1e-5


def test_buckets_reach_both_ways() -> None:
    table = buckets(300)
    assert table.min() == 0
    assert table.max() == 31
    assert [int(table[20, 20 + gap]) for gap in (-8, -3, 0, 3, 8)] == [8, 3, 0, 19, 24]


def test_float16_stays_finite() -> None:
    assert bounded(torch.tensor([torch.inf], dtype=torch.float16)).isfinite()
    assert bounded(torch.tensor([torch.inf])).isinf()


def saved(folder: Path) -> Path:
    path = folder / "model.safetensors"
    save_file(small_umt5().state_dict(), path)
    return path


def load(tokenizer: Path, **options: object) -> TextEncoder:
    from dataclasses import replace

    spec = replace(MODELS["tiny"], text=SMALL, dit=DitConfig(dim=128, ffn_dim=8, heads=1, layers=1, text_dim=32, text_len=20))
    files = {"text": saved(tokenizer.parent), "tokenizer": tokenizer}
    return TextEncoder.load(spec, files, **{"dtype": torch.float32, **options})  # type: ignore[arg-type]


def test_embeddings_are_padded_with_zeros(tokenizer: Path) -> None:
    encoder = load(tokenizer)
    both = encoder.encode(["a red cat", "a dog and a cat runs"])
    assert both.shape == (2, 20, 32)
    assert both[0, :4].abs().min(dim=-1).values.gt(0).any()
    assert not both[0, 4:].any()
    ids = torch.tensor([[3, 4, 5, 1]])
    assert torch.allclose(both[0, :4], small_umt5()(ids, torch.ones_like(ids))[0], atol=1e-5)
    assert torch.equal(encoder.encode(["a dog and a cat runs"])[0], both[1])


def test_weights_can_be_stored_in_eight_bits(tokenizer: Path) -> None:
    exact, coded = load(tokenizer), load(tokenizer, scheme="int8-channel")
    q = coded.model.get_submodule("encoder.block.0.layer.0.SelfAttention.q")
    assert isinstance(q.weight, QTensor)
    assert isinstance(coded.model.shared.weight, Tensor)
    a, b = coded.encode(["a red cat"]), exact.encode(["a red cat"])
    assert 0 < (a - b).norm() / b.norm() < 0.05


def test_weights_of_another_encoder_are_refused(tokenizer: Path) -> None:
    files = {"text": saved(tokenizer.parent), "tokenizer": tokenizer}
    with pytest.raises(CheckpointError, match="do not fit the model"):
        TextEncoder.load(MODELS["wan2.1-t2v-1.3b"], files)


VISION = ClipConfig(dim=32, ffn_dim=48, heads=2, layers=2, image=28, patch=7)


def clip_pair(tmp_path: Path) -> tuple[torch.nn.Module, Path]:
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=28,
        patch_size=7,
        hidden_act="gelu",
    )
    torch.manual_seed(0)
    theirs = transformers.CLIPVisionModel(config).eval().requires_grad_(False)
    for parameter in theirs.parameters():
        parameter += torch.randn_like(parameter) * 0.1
    state = {
        name if name.startswith("vision_model.") else f"vision_model.{name}": value for name, value in theirs.state_dict().items()
    }
    path = tmp_path / "clip.safetensors"
    save_file({name: value for name, value in state.items() if value.is_floating_point()}, path)
    return theirs, path


def test_clip_matches_transformers(tmp_path: Path) -> None:
    theirs, path = clip_pair(tmp_path)
    ours = load_clip(path, dtype=torch.float32, config=VISION)
    image = torch.rand(2, 3, 40, 50) * 2 - 1
    expected = theirs(ours.prepare(image), output_hidden_states=True).hidden_states[-2]
    assert (ours(image) - expected).abs().max() / expected.abs().max() < 1e-5


def test_clip_reads_wans_own_file(tmp_path: Path) -> None:
    _, path = clip_pair(tmp_path)
    ours = load_clip(path, dtype=torch.float32, config=VISION)
    own = dict(_as_wan(ours))
    torch.save(own, tmp_path / "clip.pth")
    again = load_clip(tmp_path / "clip.pth", dtype=torch.float32, config=VISION)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), again.parameters(), strict=True))
    del own["visual.pos_embedding"]
    torch.save(own, tmp_path / "less.pth")
    with pytest.raises(CheckpointError, match="no CLIP image encoder"):
        load_clip(tmp_path / "less.pth", config=VISION)


def _as_wan(model: ClipVision) -> list[tuple[str, Tensor]]:
    state = model.state_dict()
    take = {name.removeprefix("vision_model."): value for name, value in state.items()}
    rows = [
        ("visual.cls_embedding", take["embeddings.class_embedding"].view(1, 1, -1)),
        ("visual.pos_embedding", take["embeddings.position_embedding.weight"][None]),
        ("visual.patch_embedding.weight", take["embeddings.patch_embedding.weight"]),
        ("visual.pre_norm.weight", take["pre_layrnorm.weight"]),
        ("visual.pre_norm.bias", take["pre_layrnorm.bias"]),
        ("visual.head", torch.zeros(32, 8)),
        ("textual.token_embedding.weight", torch.zeros(4, 8)),
        ("log_scale", torch.zeros(())),
    ]
    for n in range(VISION.layers):
        block = f"encoder.layers.{n}."
        for kind in ("weight", "bias"):
            fused = torch.cat([take[f"{block}self_attn.{letter}_proj.{kind}"] for letter in "qkv"])
            rows.append((f"visual.transformer.{n}.attn.to_qkv.{kind}", fused))
            for wan, hf in (
                ("norm1", "layer_norm1"),
                ("norm2", "layer_norm2"),
                ("attn.proj", "self_attn.out_proj"),
                ("mlp.0", "mlp.fc1"),
                ("mlp.2", "mlp.fc2"),
            ):
                rows.append((f"visual.transformer.{n}.{wan}.{kind}", take[f"{block}{hf}.{kind}"]))
    return rows


@torch.no_grad()
def test_image_condition() -> None:
    from dataclasses import replace

    torch.manual_seed(0)
    vae = build_vae(replace(MODELS["tiny"].vae, base_dim=4, z_dim=4, mean=(), std=()))
    image = torch.rand(1, 3, 16, 24) * 2 - 1
    condition = image_condition(vae, image, 9)
    assert condition.shape == (1, 4 + 4, 3, 2, 3)
    assert condition[:, :4, 0].eq(1).all()
    assert not condition[:, :4, 1:].any()
    clip = torch.cat([image[:, :, None], torch.zeros(1, 3, 8, 16, 24)], dim=2)
    assert torch.allclose(condition[:, 4:], vae.encode(clip), atol=1e-5)


def test_first_frame_conditioning() -> None:
    times = first_frame_times(700.0, (3, 2, 2), batch=2)
    assert times.shape == (2, 12)
    assert not times[:, :4].any()
    assert times[:, 4:].eq(700).all()
    x, first = torch.randn(1, 4, 3, 2, 2), torch.randn(1, 4, 1, 2, 2)
    held = hold_first_frame(x, first)
    assert torch.equal(held[:, :, :1], first)
    assert torch.equal(held[:, :, 1:], x[:, :, 1:])


def test_the_grammar_file_is_beside_the_model() -> None:
    path = MODELS["tiny"].prompt_grammar
    assert path is not None
    assert path.parent == MODELS["tiny"].root
    if path.exists():
        json.loads(path.read_text())


@pytest.mark.parametrize("scheme", ["int8-channel", "int8-block128"])
def test_a_matrix_quantised_in_parts_has_the_same_codes(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "AT_ONCE", 5 * 96 + 7)
    weight = torch.randn(33, 96, dtype=torch.bfloat16)
    whole, parts = quantize(weight, scheme), text._in_parts(weight, scheme)
    assert (whole.scheme, whole.dtype) == (parts.scheme, parts.dtype)
    assert torch.equal(whole.values, parts.values)
    assert torch.equal(whole.scales, parts.scales)
