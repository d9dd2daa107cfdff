"""The models' parameter names and shapes are exactly those of the published checkpoints."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from math import prod
from pathlib import Path
from time import process_time

import pytest
import torch
from torch import nn

from turbort.checkpoints.diffusers import dit_to_wan
from turbort.models.config import DitConfig
from turbort.models.spec import MODELS
from turbort.models.umt5 import Umt5
from turbort.models.vae import build_vae
from turbort.models.wan_dit import WanDit

DATA = Path(__file__).parents[2] / "data" / "wan_keys.json.gz"
Keys = dict[str, list[int]]


@pytest.fixture(scope="module")
def published() -> dict[str, Keys]:
    """Names and shapes as the original classes give them, by checkpoint."""
    loaded: dict[str, Keys] = json.loads(gzip.decompress(DATA.read_bytes()))
    return loaded


def keys(model: nn.Module) -> Keys:
    return {name: list(value.shape) for name, value in model.state_dict().items()}


def transformer(config: DitConfig) -> Keys:
    with torch.device("meta"):
        return keys(WanDit(config))


@pytest.mark.parametrize(
    ("model", "checkpoint"),
    [
        ("wan2.1-t2v-1.3b", "wan2.1-t2v-1.3b"),
        ("wan2.1-t2v-14b", "wan2.1-t2v-14b"),
        ("wan2.1-i2v-14b", "wan2.1-i2v-14b"),
        ("wan2.2-t2v-a14b", "wan2.1-t2v-14b"),  # each expert has the sizes of the 2.1 model
    ],
)
def test_base_transformers(published: dict[str, Keys], model: str, checkpoint: str) -> None:
    assert transformer(MODELS[model].base().dit) == published[checkpoint]


@pytest.mark.parametrize(
    ("model", "checkpoint"),
    [
        ("wan2.1-t2v-1.3b", "turbo-wan2.1-1.3b"),
        ("wan2.1-t2v-14b", "turbo-wan2.1-14b"),
        ("wan2.2-i2v-a14b", "turbo-wan2.2-a14b"),
    ],
)
def test_turbo_transformers(published: dict[str, Keys], model: str, checkpoint: str) -> None:
    expected = dict(published[checkpoint])
    ours = transformer(MODELS[model].dit)
    flat = ours.pop("patch_embedding.weight")
    assert [flat[0], prod(flat[1:])] == expected.pop("patch_embedding.weight")  # stored as a matrix
    assert ours == expected


def test_ti2v_5b(published: dict[str, Keys]) -> None:
    expected = {dit_to_wan(name): shape for name, shape in published["diffusers-wan2.2-ti2v-5b"].items()}
    assert transformer(MODELS["wan2.2-ti2v-5b"].dit) == expected


def test_vae(published: dict[str, Keys]) -> None:
    with torch.device("meta"):
        assert keys(build_vae(MODELS["wan2.1-t2v-14b"].vae)) == published["wan2.1-vae"]


def test_umt5(published: dict[str, Keys]) -> None:
    expected = {name: shape for name, shape in published["umt5-xxl"].items() if name != "encoder.embed_tokens.weight"}
    with torch.device("meta"):
        assert keys(Umt5(MODELS["wan2.1-t2v-14b"].text)) == expected


def test_the_largest_model_builds_fast_on_meta_and_owns_no_memory() -> None:
    """0.1 s of processor time; drawing 14 billion random weights would take minutes."""
    begin = process_time()
    with torch.device("meta"):
        model = WanDit(MODELS["wan2.1-i2v-14b"].dit)
    assert process_time() - begin < 20
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not list(model.buffers())


def test_a_key_that_is_missing_would_be_noticed(published: dict[str, Keys]) -> None:
    config = replace(MODELS["wan2.1-t2v-1.3b"].base().dit, layers=29)
    assert transformer(config) != published["wan2.1-t2v-1.3b"]
