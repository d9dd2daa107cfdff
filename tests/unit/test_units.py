"""Byte counts and bounds on them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import examples
from turbort.units import LIMIT, Bound, exact_bytes, format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "count"), [("40GiB", 40 * 2**30), ("16 GB", 16 * 10**9), ("1.5MiB", 3 * 2**19), ("7B", 7), ("2tib", 2**41)]
)
def test_parse(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "40", "GiB", "-1GiB", "1e9B", "40GiBs", "4 0GB", "9999999TiB", "\u0661GiB", "inf B"])
def test_refused(text):
    with pytest.raises(ValueError, match=r"size|PiB"):
        parse_bytes(text)


@examples(100)
@given(st.integers(1, 10**15 - 1))
def test_exact_form_reads_back(count):
    assert parse_bytes(exact_bytes(count)) == count


def test_limit_reads_back():
    assert parse_bytes(exact_bytes(LIMIT)) == LIMIT


def test_bounds():
    bound = Bound.parse(">=20GiB, <40GiB")
    assert [bound.allows(gib * 2**30) for gib in (19, 20, 39, 40)] == [False, True, True, False]
    assert Bound.parse("4KiB") == Bound.parse(">=4KiB")
    assert str(bound) == ">=20GiB, <40GiB"


def test_short_form():
    assert [format_bytes(count) for count in (None, 0, 1023, 1536, 5 * 2**30)] == ["unknown", "0B", "1023B", "1.5KiB", "5GiB"]
