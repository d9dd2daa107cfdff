"""Layouts along a dataflow: the fewest conversions, against brute force."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from turbort.layouts import conversions, settle

LAYOUTS = st.lists(st.sampled_from(["row", "channels_last", "nz", "any"]), min_size=1, max_size=3, unique=True)


@st.composite
def networks(draw):
    options = draw(st.lists(LAYOUTS, min_size=1, max_size=6))
    sources = [draw(st.lists(st.integers(0, i - 1), max_size=2, unique=True)) if i else [] for i in range(len(options))]
    return options, sources


def count(layouts, sources):
    return sum(map(len, conversions(layouts, sources)))


@given(networks())
def test_no_choice_needs_fewer_conversions(network):
    options, sources = network
    picks, found = settle(options, sources)
    assert found == count([row[pick] for row, pick in zip(options, picks, strict=True)], sources)
    assert found == min(count(layouts, sources) for layouts in itertools.product(*options))


def test_a_chain_stays_in_one_layout_when_its_ends_pay():
    """conv -> norm -> conv: the norm follows the convolutions, and only the ends convert."""
    options = [["channels_last"], ["row", "channels_last"], ["channels_last"], ["row"]]
    picks, found = settle(options, [[], [0], [1], [2]])
    assert picks == [0, 1, 0, 0]
    assert found == 2
    layouts = [row[pick] for row, pick in zip(options, picks, strict=True)]
    assert conversions(layouts, [[], [0], [1], [2]]) == [["row -> channels_last"], [], [], ["channels_last -> row"]]


def test_what_takes_anything_converts_nothing():
    assert conversions(["channels_last", "any", "row"], [[], [0], [1]]) == [
        ["row -> channels_last"],
        [],
        ["channels_last -> row"],
    ]


def test_a_long_residual_network_is_quick():
    """200 sites, each reading the one before and one four back."""
    options = [["row", "channels_last"] for _ in range(200)]
    sources = [[j for j in (i - 1, i - 4) if j >= 0] for i in range(200)]
    assert settle(options, sources)[1] == 0
