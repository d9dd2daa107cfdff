"""The pytest door: one line in a third party's test file runs the whole suite under pytest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from turbort.errors import UnavailableError
from turbort.registry import Registry
from turbort.testing.result import Outcome, Result
from turbort.testing.suite import Suite


def conformance(
    backend: str, registry: Registry | None = None, *, op: str = "*", precision: str = "*", sample: str = "*", large: bool = False
) -> Callable[[str], None]:
    """A test function with one parameter per case, for `test_ops = conformance("my-backend")`.

    Parameter ids are case ids, so `pytest -k "rms_norm and bf16"` selects as `turbort check` does. Rejected and
    waived cases are skipped with their reason, known issues are strict xfails. Where the backend has no device
    the whole suite is one skipped test; any other problem with the backend is an error.
    """
    import pytest

    try:
        suite = Suite(backend, registry, op=op, precision=precision, sample=sample, large=large)
        ids = suite.ids
    except UnavailableError as error:
        reason = str(error)

        def unavailable() -> None:
            pytest.skip(reason)

        return unavailable  # type: ignore[return-value]

    @pytest.mark.parametrize("case_id", ids)
    def test(case_id: str) -> None:
        _report(suite.run(case_id), pytest)

    return test


def _report(result: Result, pytest: Any) -> None:
    if result.outcome.bad:
        pytest.fail(f"{result.id}: {result.check}: {result.message}", pytrace=False)
    if result.outcome is Outcome.KNOWN:
        pytest.xfail(result.message)
    if result.outcome is not Outcome.PASS:
        pytest.skip(f"{result.outcome.value}: {result.message}")
