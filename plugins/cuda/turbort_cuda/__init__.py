"""NVIDIA GPUs for turbort: Triton kernels for sm_80 to sm_120, CUDA graphs, memory pools.

Importing this package loads neither torch nor triton.
"""

from __future__ import annotations

from collections.abc import Iterable

from turbort.backend import Backend
from turbort.checks import Check
from turbort.hookspecs import hookimpl
from turbort_cuda.backend import Cuda
from turbort_cuda.doctor import checks

HOOK_API = 1


@hookimpl
def turbort_backends() -> Iterable[Backend]:
    """The one backend of this plugin."""
    return (Cuda(),)


@hookimpl
def turbort_checks() -> Iterable[Check]:
    """Rows of `turbort doctor`."""
    return checks()
