"""Model folders with random weights at full size, small on disk: blocks share their storage in a `.pth`, so one is written.

The transformer is what a user would download before quantising; `turbort quantize` then makes the full-size file that runs.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from turbort.models.config import Defaults, ModelSpec, TextConfig
from turbort.models.sites import build_dit
from turbort.models.spec import MODELS
from turbort.models.umt5 import Umt5
from turbort.models.vae import build_vae
from turbort.profile import load_profile

WORDS = ["a", "red", "circle", "moves", "right", "over", "the", "sea", "at", "dawn", "while", "birds", "turn"]
REPEATED = (1 << 22) - 3
TOY = {"dim": 256, "ffn_dim": 512, "heads": 2, "layers": 4, "text_dim": 64, "text_len": 64}


def spec_of(model: str, *, toy: bool) -> ModelSpec:
    """The model, or one with its structure, its names and its files that runs on a CPU in seconds."""
    spec = MODELS[model]
    if not toy:
        return spec
    text = TextConfig(dim=64, ffn_dim=128, heads=2, head_dim=32, layers=2, vocab=64, text_len=64)
    small = replace(spec.dit, **{**TOY, "layers": 6 if "14b" in model else 4})
    vae = replace(spec.vae, base_dim=16)
    return replace(spec, dit=small, text=text, vae=vae, defaults=Defaults(width=128, height=128, frames=9, fps=8))


def write_models(spec: ModelSpec, folder: Path) -> Path:
    """Everything but the quantised transformer into `folder`; returns the transformer's unquantised file."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "source" / "dit.pth"
    source.parent.mkdir(exist_ok=True)
    _save(build_dit(spec, load_profile("h100").attention), source)
    with torch.device("meta"):
        parts: dict[str, nn.Module] = {"Wan2.1_VAE.pth": build_vae(spec.vae), "models_t5_umt5-xxl-enc-bf16.pth": Umt5(spec.text)}
    for name, model in parts.items():
        _save(model, folder / name)
    _tokenizer(folder / "google" / "umt5-xxl" / "tokenizer.json")
    return source


def _save(model: nn.Module, path: Path) -> None:
    """bf16 weights of a trained model's spread; tensors of the same place in different blocks are one tensor."""
    draw = torch.Generator().manual_seed(0)
    shared: dict[str, torch.Tensor] = {}
    weights: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        place = ".".join("*" if part.isdigit() and "block" in name else part for part in name.split("."))
        key = f"{place} {tuple(parameter.shape)}"
        if key not in shared:
            shared[key] = _random(place, parameter, draw)
        weights[name] = shared[key]
    torch.save(weights, path)


def _random(place: str, parameter: Any, draw: torch.Generator) -> torch.Tensor:
    fan_in = max(1, parameter[0].numel()) if parameter.ndim > 1 else 100
    # Drawing a billion values takes longer than anything measured here, so large tensors repeat what was drawn.
    drawn = torch.empty(min(parameter.numel(), REPEATED)).normal_(generator=draw) * min(1.0, fan_in**-0.5)
    copies = -(-parameter.numel() // REPEATED)
    value = drawn.to(torch.bfloat16).repeat(copies)[: parameter.numel()].view(parameter.shape)
    return value + 1 if place.endswith(("norm.weight", "norm_q.weight", "norm_k.weight", "norm3.weight", "gamma")) else value


def _tokenizer(path: Path) -> None:
    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "decoder": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }  # fmt: skip
    path.write_text(json.dumps(content))
