"""What a user reads when a profile is wrong: the whole text, one case a file in tests/golden/profiles."""

import os
from pathlib import Path

import pytest

from turbort.errors import InputError
from turbort.profile import parse_profile
from turbort.profile_yaml import MAX_BYTES

CASES = sorted((Path(__file__).parents[1] / "golden" / "profiles").glob("*.yaml"))


@pytest.mark.parametrize("path", CASES, ids=[path.stem for path in CASES])
def test_message(path):
    with pytest.raises(InputError) as caught:
        parse_profile(path.read_bytes(), "p.yaml")
    golden = path.with_suffix(".txt")
    if os.environ.get("TURBORT_UPDATE_GOLDEN"):
        golden.write_text(f"{caught.value}\n", encoding="utf-8")
    assert f"{caught.value}\n" == golden.read_text(encoding="utf-8")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", ["target: {backend: cuda\nbatch: 1\n", "target:\n\tbackend: cuda\n", "a: 1\n  b: 2\n"])
def test_broken_yaml_names_its_line(text):
    """The words after the line are the YAML library's own and differ between its C and Python forms."""
    with pytest.raises(InputError, match=r"^p\.yaml:2: not valid YAML: ."):
        parse_profile(text, "p.yaml")


def test_there_are_cases():
    assert len(CASES) > 15


def test_an_alias_bomb_is_refused_before_it_expands():
    text = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{c}: &{c} [{', '.join([f'*{p}'] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
    )
    with pytest.raises(InputError, match="anchors and aliases"):
        parse_profile(text)


@pytest.mark.parametrize("text", ["[" * 5000, "{a: " * 5000, "- " * 5000, "? " * 5000])
def test_deep_nesting_is_refused(text):
    with pytest.raises(InputError):
        parse_profile(text)


def test_a_large_file_is_refused(tmp_path):
    from turbort.profile import load_profile

    path = tmp_path / "large.yaml"
    path.write_bytes(b"# " + b"x" * MAX_BYTES)
    with pytest.raises(InputError, match="larger than"):
        load_profile(path)


@pytest.mark.parametrize("raw", [b"a: \xff\xfe", b"\x00", b"a: \x07"])
def test_bytes_that_are_no_text(raw):
    with pytest.raises(InputError, match=r"p\.yaml"):
        parse_profile(raw, "p.yaml")


def test_a_folder_is_not_a_profile(tmp_path):
    from turbort.profile_yaml import read_file

    with pytest.raises(InputError, match="cannot read profile"):
        read_file(tmp_path)
