"""Configurations as data, and the file of measured ones."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from turbort_cuda import tune, tuning, variants
from turbort_cuda.arch import ARCHS
from turbort_cuda.configs import TABLES, conv_class, row, shape_class
from turbort_cuda.trace import kind_of


@pytest.mark.parametrize("kernel", [name for name in TABLES if name.startswith("linear")])
@pytest.mark.parametrize("capability", [0, *ARCHS])
@pytest.mark.parametrize("rows", [1, 100, 100_000])
def test_every_card_and_size_has_a_configuration(kernel: str, capability: int, rows: int) -> None:
    found = row(kernel, capability, shape_class(rows))
    assert found["BLOCK_M"] in (16, 64, 128, 256)
    assert found["stages"] >= 1
    assert found["warps"] in (4, 8, 16)


@pytest.mark.parametrize("capability", [0, *ARCHS])
@pytest.mark.parametrize("outputs", [3, 64, 96, 192, 384])
def test_every_convolution_has_a_configuration(capability: int, outputs: int) -> None:
    """Widths of tiles are powers of two, and a group of frames fits into one tile of outputs."""
    found = row("conv3d", capability, conv_class(outputs))
    assert all(found[key] & (found[key] - 1) == 0 for key in ("BH", "BW", "K", "N1", "N2"))
    assert found.get("group", 1) == 1 or found["group"] * outputs <= found["N1"] + found["N2"]


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
    assert tuning.pick("linear8", 90, "wide", "1536x8960 residual", "1536x8960")["stages"] == 7
    tuning.save("sm_90", "linear8", "1536x8960 residual", {"stages": 8})
    assert tuning.pick("linear8", 90, "wide", "1536x8960 residual", "1536x8960")["stages"] == 8
    assert tuning.pick("linear8", 90, "wide", "1536x8960")["stages"] == 7


def test_a_broken_file_is_reported_and_ignored(tuning_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    tuning_file.write_text("{not json")
    with caplog.at_level(logging.WARNING, "turbort"):
        assert tuning.pick("linear8", 90, "wide") == row("linear8", 90, "wide")
    assert str(tuning_file) in caplog.text


def test_the_fastest_configuration_that_runs_is_kept(tuning_file: Path) -> None:
    """`clock` stands in for the card: 3 ms for stages=3, 2 ms for stages=2, and stages=9 does not fit."""

    def call(config: dict[str, int]) -> int:
        if config["stages"] == 9:
            raise RuntimeError("out of resource: shared memory\nHint: fewer stages")
        return config["stages"]

    contest = tune.Contest("attention", "dense-int8", 1.0, ({"stages": 3}, {"stages": 9}, {"stages": 2}), call)
    trials = list(tune.run(contest, arch="sm_90", clock=lambda run: float(run())))
    assert [trial.ms for trial in trials] == [3.0, None, 2.0, 2.0]
    assert trials[1].problem == "RuntimeError: out of resource: shared memory"
    assert tuning.pick("attention", 90, "dense-int8")["stages"] == 2
    assert tuning.pick("attention", 90, "dense-int8-fp8") == row("attention", 90, "dense-int8-fp8")


def test_a_variant_of_attention_says_all_that_the_shipped_configuration_turns_on() -> None:
    """What it leaves out comes from there: a Triton variant that does not say so would run, and be timed, as the Gluon kernel."""
    contests = [(f"dense-{precision}", variants.dense()) for precision in ("int8", "int8-fp8")]
    contests += [(f"sparse-{block[0]}x{block[1]}", variants.sparse(block)) for block in variants.BLOCKS]
    for shape, rows in contests:
        shipped = row("attention", 90, shape)
        needed = {key for key, value in shipped.items() if value} - {"BLOCK_M", "BLOCK_N"}
        assert all(needed <= set(config) for config in rows), shape


def test_every_variant_is_known_to_its_kernel() -> None:
    attention = [*variants.dense(), *(config for block in variants.BLOCKS for config in variants.sparse(block))]
    for table, rows in (("linear8", variants.linears()), ("attention", attention)):
        shipped = row(table, 90, "wide" if table == "linear8" else "dense")
        known = {*shipped, "ahead", "flatten", "per_sm", "maxnreg", "gluon", "early", "biased", "lead"}
        assert all(set(config) <= known for config in rows)
    known = {*row("conv3d", 90, "o96"), "group", "tail", "flatten", "per_sm"}
    for outputs in (3, 96, 192, 384):
        rows = list(variants.convolutions(outputs))
        assert all(set(config) <= known for config in rows)
        assert rows[0] == row("conv3d", 90, conv_class(outputs))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("linear8_kernel", "gemm"),
        ("hopper_linear_kernel", "gemm"),
        ("hopper_attention_kernel", "attention"),
        ("nvjet_sm90_tst_128x256", "gemm"),
        ("attention_kernel", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma", "attention"),
        ("finish_sums_kernel", "attention preparation"),
        ("codes_kernel", "attention preparation"),
        ("state_kernel", "attention preparation"),
        ("rows_kernel", "quantisation"),
        ("void at::native::CatArrayBatchedCopy", "copies"),
        ("void at::native::vectorized_elementwise_kernel", "other"),
    ],
)
def test_kernels_have_a_class_by_name(name: str, kind: str) -> None:
    assert kind_of(name) == kind
