"""The suite finds every planted error, by the check that is meant to find it."""

import pytest

from turbort.registry import Registry
from turbort.testing import Outcome, Suite, planted

REGISTRY = Registry(extra=[planted])


@pytest.mark.parametrize("row", planted.PLANTED, ids=lambda row: row.name)
def test_planted_error_is_found(row):
    suite = Suite("planted", REGISTRY, op=row.op, precision=row.precision, sample=row.sample)
    result = suite.run(f"{row.op}/{row.name}/{row.precision}/{row.sample}")
    assert result.outcome is Outcome.FAIL
    assert row.check in (result.check, *result.also), result.message


def test_the_same_samples_pass_with_the_reference():
    """A check that fails everything would find every planted error too."""
    wanted = {(row.op, row.precision, row.sample) for row in planted.PLANTED}
    for op, precision, sample in sorted(wanted):
        results = list(Suite("reference", REGISTRY, op=op, precision=precision, sample=sample))
        # A faster kernel may need instructions that this CPU lacks; the plain reference needs none.
        ran = [result for result in results if result.outcome is not Outcome.REJECTED]
        assert any("/reference" in result.id for result in ran), f"{op} {precision} {sample}"
        for result in ran:
            assert result.outcome is Outcome.PASS, f"{result.id}: {result.check}: {result.message}"
