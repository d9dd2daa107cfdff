"""The profiles that come with turbort: complete, documented, and what the platform table says."""

from pathlib import Path

import pytest

from turbort.profile import load_profile
from turbort.profile_schema import schema_text

FOLDER = Path(__file__).parents[2] / "profiles"
NAMES = [
    "a100",
    "ascend310p",
    "ascend910",
    "ascend950",
    "b200",
    "cpu",
    "h100",
    "h200",
    "l40s",
    "rtx3090",
    "rtx4090",
    "rtx5090",
    "tpu-v4",
    "tpu-v5e",
    "tpu-v5p",
    "tpu-v6e",
]


def test_the_list_is_complete():
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == NAMES


def test_the_schema_is_current():
    assert (FOLDER / "schema.json").read_text(encoding="utf-8") == schema_text(), (
        "run: python -m turbort.profile_schema > profiles/schema.json"
    )


@pytest.mark.parametrize("name", NAMES)
def test_each_names_its_sources_and_itself(name):
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    assert "# Source" in text
    profile = load_profile(FOLDER / f"{name}.yaml")
    assert profile.name == name
    assert profile.description


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("ascend")])
def test_ascend(name):
    profile = load_profile(name)
    assert (profile.precision.linear.max, profile.precision.linear.min) == ("w8a8", "w4a8")
    assert (profile.batch.mode, profile.batch.least, profile.batch.most) == ("dynamic", 1, 4)
    assert profile.memory.strategy == "acl-pool"


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("tpu")])
def test_tpu(name):
    profile = load_profile(name)
    assert (profile.batch.mode, profile.batch.most) == ("fixed", 2)
    assert (profile.memory.strategy, profile.precision.compute) == ("mxu-tiles", "bf16")


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("rtx")])
def test_consumer_gpu(name):
    profile = load_profile(name)
    assert (profile.precision.linear_name, profile.precision.attention, profile.batch.most) == ("w8a8", "int8", 1)
    assert (profile.memory.strategy, profile.memory.tier_boundary) == ("tiered", 40 * 2**30)


@pytest.mark.parametrize("name", ["a100", "h100", "h200", "b200", "l40s"])
def test_data_centre_gpu(name):
    profile = load_profile(name)
    assert (profile.batch.least, profile.batch.most) == (4, 8)
    assert (profile.precision.compute, profile.precision.linear_name) == ("bf16", "w8a8")
    assert profile.precision.attention == ("int8" if name == "a100" else "int8-fp8")


@pytest.mark.parametrize("name", NAMES)
def test_the_block_geometry_is_the_same_everywhere(name):
    profile = load_profile(name)
    assert (profile.attention.kind, profile.attention.topk, profile.attention.block) == ("sla", 0.1, (64, 128))
