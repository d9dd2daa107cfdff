"""The Ascend backend of turbort: Huawei NPUs through torch-npu.

Importing this package imports neither torch nor torch_npu: devices and kernels can be listed anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable

from turbort import Backend, Check, hookimpl
from turbort_ascend.backend import Ascend


@hookimpl
def turbort_backends() -> Iterable[Backend]:
    """The backend `ascend`."""
    return (Ascend(),)


@hookimpl
def turbort_checks() -> Iterable[Check]:
    """Rows of `turbort doctor`."""
    from turbort_ascend.doctor import checks

    return checks()
