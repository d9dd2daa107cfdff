"""Rooflines and measured times: what a call would cost, and which of the two is asked."""

from __future__ import annotations

import pytest

from turbort.backend import Device
from turbort.costs import MEASURED, ROOFLINE, Costs
from turbort.errors import InputError
from turbort.kernel import Call, TensorSpec
from turbort.kernel_times import KernelTimes, shape_class
from turbort.profile import list_profiles, load_profile
from turbort.roofline import DEVICES, figures_for, seconds, weight_bytes


def linear(rows=32760, k=1536, n=8960, dtype="bfloat16"):
    args = {"x": TensorSpec((1, rows, k), dtype), "weight": TensorSpec((n, k), dtype), "residual": None}
    return Call("linear", "dit/a", "ffn.in", args)


def attention(topk=None):
    spec = TensorSpec((1, 32760, 12, 128), "bfloat16")
    args = {"q": spec, "k": spec, "v": spec, **({"topk": topk} if topk else {})}
    return Call("sla_attention" if topk else "attention", "dit/b", "attn.self", args)


@pytest.mark.parametrize("name", [info.name for info in list_profiles()])
def test_every_shipped_profile_has_figures(name):
    assert figures_for("null", load_profile(name).target.arch) is not None


def test_the_h100_is_where_it_was_measured():
    """NVIDIA H100: 660-716 TFLOP/s in bf16 and 989-1158 TOP/s in int8 at these sizes (docs/benchmarks.md)."""
    h100 = figures_for("sm_90")
    work = 2 * 32760 * 1536 * 8960 / 1e12
    assert 600 < work / seconds(linear(), "bf16", h100) < 750
    assert 900 < work / seconds(linear(), "w8a8", h100) < 1160


@pytest.mark.parametrize("figures", DEVICES, ids=lambda row: row.arch)
def test_more_work_is_never_quicker(figures):
    for precision in ("bf16", "w8a8", "fp8", "w4a8", "w4a16"):
        assert seconds(linear(rows=2048), precision, figures) <= seconds(linear(rows=4096), precision, figures)
    assert seconds(attention(0.1), "bf16", figures) < seconds(attention(), "bf16", figures)
    assert seconds(linear(), "bsq8", figures, density=0.3) < seconds(linear(), "bsq8", figures)


def test_small_batches_are_bound_by_the_weights():
    """One row: four-bit weights halve the bytes, so they nearly halve the time."""
    h100 = figures_for("sm_90")
    one = [seconds(linear(rows=1), p, h100) - h100.launch for p in ("w8a8", "w4a8")]
    assert 0.45 < one[1] / one[0] < 0.6


def test_weights_in_bytes():
    count = 8960 * 1536
    assert weight_bytes(linear(), "bf16") == 2 * count
    assert weight_bytes(linear(), "w8a8") == count + 4 * 8960
    assert weight_bytes(linear(), "w4a8") == count / 2 + 4 * count / 128
    assert weight_bytes(linear(), "bsq8", 0.25) == count / 4 + 4 * count / 64


def test_shape_classes():
    assert shape_class(linear()) == "32760x1536x8960"
    assert shape_class(attention()) == "1x32760x32760x12x128"
    assert shape_class(attention(0.1)) == "1x32760x32760x12x128@0.1"


DEVICE = Device("cuda", "card", "cuda:0", "sm_90")
TIMES = KernelTimes({("cuda", "sm_90", "linear", "w8a8", "32760x1536x8960"): 0.86})


def test_a_site_is_measured_only_when_all_its_candidates_are():
    costs = Costs.of(DEVICE, (), "bf16", TIMES)
    assert costs.source(linear(), ["w8a8"]) == MEASURED
    assert costs.seconds(linear(), "w8a8", MEASURED) == pytest.approx(0.86e-3)
    assert costs.source(linear(), ["w8a8", "bf16"]) == ROOFLINE
    assert costs.source(linear(rows=7), ["w8a8"]) == ROOFLINE


def test_an_unknown_device_without_measurements_is_refused_with_a_way_out():
    costs = Costs.of(Device("picky", "Picky", "cpu", "p1"), (), "bf16", KernelTimes({}))
    with pytest.raises(InputError, match="no figures for p1") as caught:
        costs.source(linear(), ["w8a8"])
    assert "--measure" in str(caught.value)


def test_a_table_comes_back_and_a_broken_one_is_ignored(tmp_path, caplog):
    path = tmp_path / "kernel-times.json"
    path.write_text(TIMES.joined({("cuda", "sm_90", "quantize", "int8-token", "4x8"): 0.01}).dumps())
    assert KernelTimes.load(path).ms("cuda", "sm_90", "linear", "w8a8", "32760x1536x8960") == 0.86
    assert KernelTimes.load(tmp_path / "absent.json").rows == {}
    for text in ("{", '{"times": 1, "rows": [{"backend": "cuda"}]}', path.read_text().replace("0.86", "-1")):
        path.write_text(text)
        assert KernelTimes.load(path).rows == {}
        assert "ignoring" in caplog.text
        caplog.clear()
