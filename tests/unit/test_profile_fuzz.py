"""Whatever bytes or YAML come in: a profile comes out, or an InputError."""

from pathlib import Path

import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import examples
from turbort.errors import InputError
from turbort.profile import parse_profile
from turbort.profile_schema import profile_schema

SHIPPED = [path.read_text(encoding="utf-8") for path in sorted((Path(__file__).parents[2] / "profiles").glob("*.yaml"))]
WORDS = sorted({*profile_schema()["properties"], "backend", "max", "min", "size", "mode", "kind", "linear", "overrides", "block"})
QUICK = examples(60)

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from(["w8a8", "auto", "40GiB"])
)
keys = st.sampled_from(WORDS) | st.text(max_size=8)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)


def attempt(raw: str | bytes) -> bool:
    """Whether it was a profile; anything but an InputError fails the test."""
    try:
        parse_profile(raw)
    except InputError:
        return False
    return True


@QUICK
@given(st.binary(max_size=200))
def test_any_bytes(raw):
    attempt(raw)


@QUICK
@given(st.text(alphabet="{}[]:,-?*&!|>'\"#% \n\tab01.", max_size=80))
def test_text_made_of_yaml_signs(text):
    attempt(text)


@QUICK
@given(st.dictionaries(keys, values, max_size=8))
def test_any_document(document):
    attempt(yaml.safe_dump(document, allow_unicode=True))


@QUICK
@given(st.sampled_from(SHIPPED), st.data())
def test_a_profile_with_a_part_replaced(text, data):
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(start + 20, len(text))))
    attempt(text[:start] + data.draw(st.text(max_size=10)) + text[end:])


@QUICK
@given(st.sampled_from(SHIPPED), st.sampled_from(WORDS), values)
def test_a_profile_with_a_section_replaced(text, key, value):
    document = yaml.safe_load(text)
    attempt(yaml.safe_dump({**document, key: value}, allow_unicode=True))


def test_the_fuzz_can_tell_good_from_bad():
    assert all(attempt(text) for text in SHIPPED)
    assert not attempt("{}")
