"""A version without the embedded weights says so, and calls nothing broken."""

import json

import pytest

from turbort.models.spec import MODELS

ABSENT = not (MODELS["tiny"].root / "model.yaml").is_file()
pytestmark = pytest.mark.skipif(not ABSENT, reason="this version comes with the embedded weights")


def test_run_names_what_is_missing_and_what_to_do(cli):
    ended = cli("run", "--prompt", "a red circle moves right", "-o", "x.mp4")
    assert ended.code == 2
    assert "comes without the weights of tiny" in ended.err
    assert "fix:" in ended.err
    assert "recipes/tiny_shapes" in ended.err


def test_doctor_warns_and_ends_well(cli):
    ended = cli("doctor", "--json")
    row = next(row for row in json.loads(ended.out) if row["check"] == "tiny model")
    assert (ended.code, row["status"]) == (0, "warn")
