"""The examples of property tests are the same in every run, whatever ran before and however slow the machine is."""

import sys
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import SEED
from tests.properties import examples


def drawn():
    """What a test in the default profile is given."""
    seen = []

    @settings(settings.get_profile("ci"), max_examples=300)
    @given(st.integers(0, 2**40) | st.text(max_size=4))
    def test(value):
        seen.append(value)

    test()
    return seen


def test_examples_do_not_depend_on_the_modules_that_are_imported(tmp_path, monkeypatch):
    before = drawn()
    assert drawn() == before
    module = ModuleType("made")
    module.__file__ = str(tmp_path / "made.py")
    (tmp_path / "made.py").write_text(f"NUMBERS = {[2**36 + 7 * n for n in range(300)]}\n")
    monkeypatch.setitem(sys.modules, "made", module)
    assert drawn() == before


def test_no_test_of_this_run_depends_on_time_or_luck(request):
    """A test says how many examples it takes; the rest is the profile's."""
    tests = [getattr(item, "obj", None) for item in request.session.items]
    found = [test._hypothesis_internal_use_settings for test in tests if getattr(test, "is_hypothesis_test", False)]
    for own in [*found, examples(7), examples(7, one_folder=True)]:
        assert own.derandomize == settings.default.derandomize
        assert own.deadline is None
        assert HealthCheck.too_slow in own.suppress_health_check


@pytest.mark.parametrize("turn", [1, 2])
def test_random_numbers_do_not_depend_on_what_ran_before(turn):
    import torch

    assert torch.initial_seed() == SEED
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(SEED)))


@pytest.mark.parametrize(("profile", "count"), [("ci", 7), ("fuzz", 140)])
def test_a_profile_multiplies_what_a_test_asks_for(profile, count):
    used = settings.get_current_profile_name()
    settings.load_profile(profile)
    try:
        assert examples(7).max_examples == count
        assert examples(7).derandomize == (profile == "ci")
    finally:
        settings.load_profile(used)
