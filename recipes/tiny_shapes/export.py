"""Stage 5: write the trained model as turbort ships it, and the teacher for whoever wants to train on.

    python -m recipes.tiny_shapes.export --out runs/tiny             runs/tiny/export/{tiny,weights}
    python -m recipes.tiny_shapes.export --out runs/tiny --install   the same, then into the repository

`tiny/` holds `dit.safetensors` (matrices of the blocks and the time projection as int8 with a float32 scale per output
channel, the rest bf16), `vae.safetensors`, `text_encoder/`, the tokenizer, `grammar.json` and `model.yaml`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from recipes.tiny_shapes import captions
from recipes.tiny_shapes.common import ROOT, Options, load_weights, options, parser, save_weights, table
from recipes.tiny_shapes.config import SIGMA_MAX, SLA_BLOCK, SLA_TOPK, Sizes
from recipes.tiny_shapes.scene import Object, Scene
from recipes.tiny_shapes.tokenizer import save_tokenizer
from turbort.errors import TurbortError
from turbort.quant.schemes import quantize

LIMIT = 16_000_000  # bytes of the shipped folder
ASSETS = ROOT / "turbort" / "assets" / "tiny"
WEIGHTS = Path(__file__).parent / "weights"
EXAMPLES = (
    ("circle", "red", "right"),
    ("star", "blue", "rotate"),
    ("square", "yellow", "bounce_vertical"),
    ("triangle", "cyan", "grow"),
)


def is_int8(name: str, value: Tensor) -> bool:
    """Whether a weight is stored in 8 bits: matrices of the blocks, and the time projection, a fifth of what is left."""
    if name == "time_projection.1.weight":
        return True
    return name.startswith("blocks.") and name.endswith(".weight") and value.ndim == 2 and "proj_l" not in name


def stored_dit(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The transformer's tensors as they are stored."""
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        if is_int8(name, value):
            q = quantize(value.float(), "int8-channel")
            out[name], out[f"{name}_scale"] = q.values, q.scales.view(-1, 1)
        else:
            out[name] = value.to(torch.bfloat16)
    return out


def model_description(s: Sizes, info: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    """`model.yaml`."""
    return {
        "name": "tiny",
        "title": "tiny-shapes: 2-second clips of moving shapes, embedded in turbort",
        "task": "t2v",
        "sampler": "rcm",
        "presets": {"rcm": {"steps": 4, "sigma_max": SIGMA_MAX}},
        "defaults": {"width": s.edge, "height": s.edge, "frames": s.frames, "fps": s.fps},
        "dit": {
            "dim": s.dim, "ffn_dim": s.ffn, "heads": s.heads, "layers": s.layers, "in_channels": s.z, "out_channels": s.z,
            "text_dim": s.text_dim, "text_len": s.text_len, "freq_dim": s.freq_dim,
            "sla": {"topk": SLA_TOPK, "block": list(SLA_BLOCK)},
        },
        "vae": {
            "base_dim": s.vae_dim, "z_dim": s.z, "dim_mult": list(s.vae_mult), "res_blocks": s.vae_blocks,
            "temporal_downsample": list(s.vae_time), "mean": info["mean"], "std": info["std"],
        },
        "text": {
            "dim": s.text_dim, "ffn_dim": s.text_ffn, "heads": s.text_heads, "head_dim": s.text_dim // s.text_heads,
            "layers": s.text_layers, "vocab": vocabulary, "text_len": s.text_len,
        },
        "files": {
            "dit": ["dit.safetensors"], "vae": ["vae.safetensors"], "text": ["text_encoder/model.safetensors"],
            "tokenizer": ["tokenizer.json"],
        },
        "licence": "Apache-2.0",
        "prompt_grammar": "grammar.json",
    }  # fmt: skip


def text_config(s: Sizes, vocabulary: int) -> dict[str, Any]:
    """`config.json` of the text encoder, for transformers."""
    return {
        "architectures": ["UMT5EncoderModel"], "model_type": "umt5", "vocab_size": vocabulary, "d_model": s.text_dim,
        "d_kv": s.text_dim // s.text_heads, "d_ff": s.text_ffn, "num_layers": s.text_layers, "num_heads": s.text_heads,
        "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "dropout_rate": 0.0,
        "feed_forward_proj": "gated-gelu", "pad_token_id": 0, "eos_token_id": 1, "layer_norm_epsilon": 1e-6,
        "tie_word_embeddings": False, "use_cache": False,
    }  # fmt: skip


def write_language(folder: Path) -> None:
    """Tokenizer and grammar, which need no training."""
    save_tokenizer(folder)
    examples = [captions.caption(Scene((Object(*e),))) for e in EXAMPLES]
    examples.append(captions.caption(Scene((Object(*EXAMPLES[0]), Object(*EXAMPLES[1])))))
    grammar = {"pattern": captions.grammar_pattern(), "examples": examples}
    (folder / "grammar.json").write_text(json.dumps(grammar, indent=1) + "\n", encoding="utf-8")


def folder_bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def check_size(folder: Path) -> int:
    """Bytes in `folder`; TurbortError when they are more than the package may carry."""
    size = folder_bytes(folder)
    if size > LIMIT:
        files = sorted(((p.stat().st_size, p.name) for p in folder.rglob("*") if p.is_file()), reverse=True)
        raise TurbortError(
            f"{folder} holds {size:,} bytes, {LIMIT:,} are allowed",
            tried=[f"{name}: {count:,}" for count, name in files[:5]],
            fix="store more matrices in int8 or make the model smaller",
        )
    return size


def write_model(out: Path, s: Sizes, folder: Path) -> int:
    """The shipped folder, from a run's stages `text`, `vae` and `sla`; returns its bytes."""
    import yaml

    if folder.exists():
        shutil.rmtree(folder)
    text = {k: v.to(torch.bfloat16).contiguous() for k, v in load_weights(out / "text", "text").items()}
    info = json.loads((out / "vae" / "vae.json").read_text())
    (folder / "text_encoder").mkdir(parents=True)
    write_language(folder)
    vocabulary = text["shared.weight"].shape[0]
    dit = {k: v.contiguous() for k, v in stored_dit(load_weights(out / "sla", "dit")).items()}
    save_file(dit, folder / "dit.safetensors", {"format": "pt"})
    vae = {k: v.to(torch.bfloat16).contiguous() for k, v in load_weights(out / "vae", "vae").items()}
    save_file(vae, folder / "vae.safetensors", {"format": "pt"})
    save_file(text, folder / "text_encoder" / "model.safetensors", {"format": "pt"})
    (folder / "text_encoder" / "config.json").write_text(json.dumps(text_config(s, vocabulary), indent=1) + "\n")
    description = yaml.safe_dump(model_description(s, info, vocabulary), sort_keys=False, default_flow_style=None, width=120)
    (folder / "model.yaml").write_text(description, encoding="utf-8")
    shutil.copy(ROOT / "LICENSE", folder / "LICENSE")
    return check_size(folder)


def write_weights(out: Path, folder: Path) -> None:
    """What later training starts from, laid out like a run: autoencoder, teacher and text encoder in bf16 shards."""
    for stage, name in (("text", "text"), ("vae", "vae"), ("teacher", "dit")):
        save_weights(folder / stage, name, load_weights(out / stage, name))
    for stage in ("text", "vae", "teacher"):
        shutil.copy(out / stage / f"{stage}.json", folder / stage / f"{stage}.json")


def export(o: Options) -> Path:
    """Write both folders into the run; returns the shipped one."""
    target = o.out / "export"
    size = write_model(o.out, o.sizes, target / "tiny")
    write_weights(o.out, target / "weights")
    table("export", [("tiny", f"{size:,} bytes of {LIMIT:,}"), ("weights", f"{folder_bytes(target / 'weights'):,} bytes")])
    return target / "tiny"


def write_card(out: Path) -> None:
    """The model card, with the table that `evaluate` has made; without scores there is none to publish."""
    scores = out / "evaluate" / "table.md"
    if not scores.is_file():
        raise SystemExit(f"{scores} is not there: run recipes.tiny_shapes.evaluate first")
    card = (Path(__file__).parent / "card.md").read_text(encoding="utf-8")
    (out / "export" / "tiny" / "README.md").write_text(card.format(table=scores.read_text()), encoding="utf-8")


def install(out: Path) -> None:
    """Write the model card and copy an exported run into the repository."""
    write_card(out)
    for source, target in ((out / "export" / "tiny", ASSETS), (out / "export" / "weights", WEIGHTS)):
        check_size(source) if target == ASSETS else None
        if target.exists():
            shutil.rmtree(target)
        shutil.copytree(source, target)
        print(f"{target}: {folder_bytes(target):,} bytes")


if __name__ == "__main__":
    p = parser(__doc__, 0.0)
    p.add_argument("--install", action="store_true", help="copy an exported run into turbort/assets/tiny and weights/")
    a = p.parse_args()
    if a.install:
        install(options(a).out)
    else:
        export(options(a))
