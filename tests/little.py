"""A model small enough for tests, with random weights, in the layout of the embedded one. Needs no test package but pytest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

MODEL: Mapping[str, Any] = {
    "name": "little",
    "title": "random weights for tests",
    "task": "t2v",
    "sampler": "rcm",
    "dit": {
        "dim": 128,
        "ffn_dim": 192,
        "heads": 1,
        "layers": 2,
        "text_dim": 32,
        "text_len": 16,
        "sla": {"topk": 0.1, "block": [64, 128]},
    },
    "vae": {"base_dim": 8, "res_blocks": 1},
    "text": {"dim": 32, "ffn_dim": 64, "heads": 2, "head_dim": 16, "layers": 1, "vocab": 64, "text_len": 16},
    "defaults": {"width": 64, "height": 64, "frames": 9, "fps": 8},
    "presets": {"rcm": {"steps": 4}, "euler": {"steps": 3, "guidance": 2.0, "shift": 3.0}},
    "files": {
        "dit": ["dit.safetensors"],
        "vae": ["vae.safetensors"],
        "text": ["text_encoder/model.safetensors"],
        "tokenizer": ["tokenizer.json"],
    },
}
WORDS = ["a", "red", "blue", "green", "circle", "square", "star", "moves", "right", "left", "up", "and"]


@pytest.fixture(scope="session")
def little(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the small random model; `read_spec(little / "model.yaml")` is its spec."""
    import torch
    import yaml
    from safetensors.torch import save_file
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    from turbort.models.tiny import read_spec
    from turbort.models.umt5 import Umt5
    from turbort.models.vae import build_vae
    from turbort.models.wan_dit import WanDit

    folder = tmp_path_factory.mktemp("little")
    (folder / "model.yaml").write_text(yaml.safe_dump(dict(MODEL)))
    spec = read_spec(folder / "model.yaml")
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "text_encoder").mkdir()
    torch.manual_seed(7)
    models = {"dit": WanDit(spec.dit), "vae": build_vae(spec.vae), "text_encoder/model": Umt5(spec.text)}
    for name, model in models.items():
        # Every weight random: zero heads and projections would hide whatever comes before them.
        weights = {key: torch.randn(value.shape) / max(value[0].numel(), 1) ** 0.5 for key, value in model.state_dict().items()}
        weights = {
            key: value + 1 if key.endswith(("gamma", "norm_q.weight", "norm_k.weight")) else value
            for key, value in weights.items()
        }
        save_file(weights, folder / f"{name}.safetensors")
    return folder
