"""Configurations as data, and the file of measured ones."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from turbort_cuda import tuning
from turbort_cuda.arch import ARCHS
from turbort_cuda.configs import TABLES, row, shape_class


@pytest.mark.parametrize("kernel", [name for name in TABLES if name.startswith("linear")])
@pytest.mark.parametrize("capability", [0, *ARCHS])
@pytest.mark.parametrize("rows", [1, 100, 100_000])
def test_every_card_and_size_has_a_configuration(kernel: str, capability: int, rows: int) -> None:
    found = row(kernel, capability, shape_class(rows))
    assert found["BLOCK_M"] in (16, 64, 128, 256)
    assert found["stages"] >= 1
    assert found["warps"] in (4, 8, 16)


def test_descriptors_only_where_the_card_has_them() -> None:
    for kernel, table in TABLES.items():
        for capability, shapes in table.items():
            if any(config.get("tma") for config in shapes.values()):
                assert "tma" in ARCHS[capability].features, (kernel, capability)


def test_block_scales_need_whole_tiles() -> None:
    for shapes in TABLES["linear_block128"].values():
        for config in shapes.values():
            assert (config["BLOCK_N"], config["BLOCK_K"]) == (128, 128)
            assert 128 % config["BLOCK_M"] == 0


@pytest.fixture
def tuning_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "tuning.json"
    monkeypatch.setenv(tuning.VARIABLE, str(path))
    tuning.measured.cache_clear()
    yield path
    tuning.measured.cache_clear()


def test_measured_configurations_win(tuning_file: Path) -> None:
    shipped = row("linear8", 90, "wide")
    assert tuning.pick("linear8", 90, "wide", "1536x8960") == shipped
    tuning.save("sm_90", "linear8", "1536x8960", {"stages": 7})
    assert tuning.pick("linear8", 90, "wide", "1536x8960") == {**shipped, "stages": 7}
    assert tuning.pick("linear8", 90, "wide", "1536x1536") == shipped
    assert tuning.pick("linear8", 89, "wide", "1536x8960") == row("linear8", 89, "wide")


def test_a_broken_file_is_reported_and_ignored(tuning_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    tuning_file.write_text("{not json")
    with caplog.at_level(logging.WARNING, "turbort"):
        assert tuning.pick("linear8", 90, "wide") == row("linear8", 90, "wide")
    assert str(tuning_file) in caplog.text
