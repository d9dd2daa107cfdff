"""Property tests: the same examples in every run, or many new ones with `make fuzz`.

`ci`, the default profile, derives the examples from each test's source, so that a change can fail only by itself.
`fuzz` draws twenty times as many from a new seed. Nothing about either depends on how fast the machine is.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

USUAL = 100
"""Examples of a test that does not say how many, in the `ci` profile."""
STEADY = {"deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow]}


def register() -> None:
    """Make the profiles known, and `ci` the one that is used."""
    settings.register_profile("ci", max_examples=USUAL, derandomize=True, database=None, **STEADY)
    settings.register_profile("fuzz", max_examples=20 * USUAL, derandomize=False, **STEADY)
    settings.load_profile("ci")
    # Hypothesis also draws from the constants of whatever modules of this repository are imported, and those are the ones that
    # this worker's earlier tests needed: without this, a derandomised test sees other examples in another order of tests.
    # There is no setting for it; tests/unit/test_properties.py fails if this stops working.
    providers._get_local_constants = lambda: providers._local_constants  # type: ignore[assignment]


def examples(count: int, *, one_folder: bool = False) -> settings:
    """`count` examples, or as many times more as the profile says; `one_folder` lets all of them share a `tmp_path`."""
    checks = [*settings.default.suppress_health_check, *([HealthCheck.function_scoped_fixture] if one_folder else [])]
    return settings(max_examples=count * settings.default.max_examples // USUAL, suppress_health_check=checks)
