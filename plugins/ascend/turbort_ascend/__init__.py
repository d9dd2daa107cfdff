"""The Ascend backend of turbort: Huawei NPUs through torch-npu.

Importing this package imports neither torch nor torch_npu: devices and kernels can be listed anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable

from turbort import Backend, hookimpl
from turbort_ascend.backend import Ascend


@hookimpl
def turbort_backends() -> Iterable[Backend]:
    """The backend `ascend`."""
    return (Ascend(),)
