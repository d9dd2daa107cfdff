"""Calibration documents: sums that merge in any order, errors in words, and the way from errors to decibels."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from turbort.calibrate.observe import felt, moments, weight_sparsity
from turbort.calibration import Calibration, Link, merge
from turbort.errors import InputError
from turbort.site_record import Harm, Moments, SiteRecord, StepRecord

HEADER = {"model": "m", "checkpoints": {"dit": "sha256:1"}, "steps": 2}
values = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20)


def record(rows, steps=(0, 1)):
    seen = moments(torch.tensor([rows]))
    found = {k: StepRecord(1, seen, {"w8a8": Harm(1.0, 4.0, 0.5 * (k + 1))}) for k in steps}
    return SiteRecord("linear", "ffn.in", 0.25, 0.0, found)


def made(rows, run, **changes):
    return Calibration({**HEADER, **changes}, {"dit/a": record(rows)}, (run,), (Link("w8a8", 1e-4, 1e-5),))


@given(values, values, values)
def test_merging_is_the_same_in_any_order(a, b, c):
    x, y, z = (made(rows, (str(index), index)) for index, rows in enumerate((a, b, c)))
    left, right = merge([merge([x, y]), z]), merge([merge([z, x]), y])
    for one, other in zip(left.sites["dit/a"].steps.values(), right.sites["dit/a"].steps.values(), strict=True):
        assert (one.calls, one.seen.count, one.seen.bins) == (other.calls, other.seen.count, other.seen.bins)
        assert (one.seen.low, one.seen.high) == (other.seen.low, other.seen.high)
        assert math.isclose(one.seen.square, other.seen.square, rel_tol=1e-9)
    assert math.isclose(left.sites["dit/a"].felt("w8a8"), right.sites["dit/a"].felt("w8a8"))
    assert set(left.runs) == set(right.runs)


@given(values, values)
def test_parts_say_what_the_whole_says(a, b):
    both, parts = moments(torch.tensor([a])) + moments(torch.tensor([b])), torch.tensor([*a, *b], dtype=torch.float64)
    assert both.count == len(parts)
    assert both.largest == parts.abs().max()
    assert math.isclose(both.rms, float(parts.square().mean().sqrt()), rel_tol=1e-5, abs_tol=1e-6)
    exact = float(parts.abs().sort().values[math.ceil(0.5 * len(parts)) - 1])
    assert both.quantile(0.5) >= exact


def test_statistics_of_a_known_tensor():
    x = torch.zeros(4, 100)
    x[:, 0], x[:, 1] = 127.0, 0.4
    x[0, 2] = 0.6
    found = moments(x)
    # 0.4 rounds to code 0 where 127 is the largest of a row, 0.6 to code 1.
    assert found.zeros == 400 - 4 - 1
    assert found.outliers == 4
    assert (found.low, found.high) == (0.0, 127.0)


def test_share_of_empty_tiles():
    weight = torch.ones(16, 24)
    weight[:8, :8] = 0
    weight[8:, 8:15] = 0  # not a whole tile
    assert weight_sparsity(weight) == (pytest.approx(1 / 6), 0.0)
    weight = torch.ones(128, 100)
    weight[:64, 64:], weight[70:, :64] = 0, 0
    assert weight_sparsity(weight)[1] == pytest.approx(1 / 4)


def test_felt_adds_up_over_tokens_before_it_squares():
    slope, delta = torch.ones(1, 5, 2), torch.ones(1, 5, 2)
    assert felt(slope, delta) == 2 * 25
    delta[0, ::2] = -1
    assert felt(slope, delta) == 2 * 1


def test_a_document_comes_back_as_it_was():
    whole = made([1.0, -2.0], ("a circle", 3))
    again = Calibration.loads(whole.dumps())
    assert again == whole
    assert again.digest == whole.digest
    assert again.sites["dit/a"].felt("w8a8") == pytest.approx(0.75)
    assert again.sites["dit/a"].nmse("w8a8") == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("text", "word"),
    [("{", "not JSON"), ("[]", "schema"), ('{"calibration": 2}', "schema"), ('{"calibration": 1, "sites": {}}', "damaged")],
)
def test_what_is_no_calibration_is_refused_in_words(text, word):
    with pytest.raises(InputError, match=word):
        Calibration.loads(text)


def test_a_damaged_site_is_refused():
    document = json.loads(made([1.0], ("a", 0)).dumps())
    document["sites"]["dit/a"]["steps"]["0"]["harms"]["w8a8"] = [1.0]  # a Harm without its signal is still one
    assert Calibration.loads(json.dumps(document)).sites["dit/a"].steps[0].harms["w8a8"] == Harm(1.0)
    document["sites"]["dit/a"]["steps"]["0"]["seen"] = {"count": 3}
    with pytest.raises(InputError, match="damaged"):
        Calibration.loads(json.dumps(document))


def test_other_weights_and_repeated_runs_do_not_merge():
    with pytest.raises(InputError, match="do not belong together") as caught:
        merge([made([1.0], ("a", 0)), made([1.0], ("b", 0), checkpoints={"dit": "sha256:2"})])
    assert "sha256:2" in str(caught.value)
    with pytest.raises(InputError, match="more than one file"):
        merge([made([1.0], ("a", 0)), made([2.0], ("a", 0))])


def test_a_calibration_is_bound_to_its_weights():
    made([1.0], ("a", 0)).check("m", {"dit": "sha256:1"})
    with pytest.raises(InputError, match="other weights") as caught:
        made([1.0], ("a", 0)).check("m", {"dit": "sha256:9"})
    assert "sha256:9" in str(caught.value)
    with pytest.raises(InputError, match="other weights"):
        made([1.0], ("a", 0)).check("other")


LINKED = Calibration(HEADER, {}, (), (Link("w8a8", 1e-4, 1e-5), Link("w4a8", 1e-2, 1e-3)))


def test_links_are_met_exactly_and_continued():
    assert LINKED.psnr_at(1e-4) == pytest.approx(50)
    assert LINKED.psnr_at(1e-2) == pytest.approx(30)
    assert LINKED.error_for(30) == pytest.approx(1e-2)
    assert LINKED.psnr_at(1e-3) == pytest.approx(40)
    assert LINKED.psnr_at(1e-1) == pytest.approx(20)
    assert LINKED.psnr_at(0) == 100


@given(st.floats(5, 90))
def test_decibels_and_errors_are_inverse(psnr):
    assert LINKED.psnr_at(LINKED.error_for(psnr)) == pytest.approx(psnr)
    without = Calibration(HEADER, {})
    assert without.psnr_at(without.error_for(psnr)) == pytest.approx(psnr)


def test_empty_moments_are_neutral():
    x = moments(torch.tensor([[1.0, 2.0]]))
    assert x + Moments() == x
