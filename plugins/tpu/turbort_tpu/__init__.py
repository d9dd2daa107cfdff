"""Google TPUs for turbort: kernels in JAX and Pallas, checked on XLA:CPU and compiled for TPUs that are not here.

Importing this package loads neither torch nor jax.
"""

from __future__ import annotations

from collections.abc import Iterable

from turbort.backend import Backend
from turbort.checks import Check
from turbort.hookspecs import hookimpl
from turbort_tpu.backend import Tpu
from turbort_tpu.doctor import checks

HOOK_API = 1


@hookimpl
def turbort_backends() -> Iterable[Backend]:
    """The one backend of this plugin."""
    return (Tpu(),)


@hookimpl
def turbort_checks() -> Iterable[Check]:
    """Rows of `turbort doctor`."""
    return checks()
