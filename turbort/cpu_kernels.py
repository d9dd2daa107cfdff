"""The faster CPU kernels of the reference backend, as rows for the planner. No torch here."""

from __future__ import annotations

from collections.abc import Iterable

from turbort.kernel import Kernel


def cpu_kernels() -> Iterable[Kernel]:
    """Kernels that beat the plain reference on CPUs that have the instructions they need."""
    return ()
