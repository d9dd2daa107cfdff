"""The null backend: plans anything and computes nothing, for tests, sizing and dry runs.

It accepts every op at every precision, so a plan for any profile and model size can be made on a laptop. A kernel's
call returns tensors of the right shape on torch's meta device: no values, no memory. A session refuses it.
"""

from __future__ import annotations

from collections.abc import Iterable

from turbort.backend import Backend, Device
from turbort.hookspecs import hookimpl
from turbort.kernel import Kernel
from turbort.reference import reference_kernels


class Null(Backend):
    """Accepts everything and computes nothing."""

    name = "null"

    def probe(self) -> list[Device]:
        return [
            Device(
                backend=self.name,
                name="null device (no arithmetic)",
                torch_name="meta",
                arch="null",
                dtypes=frozenset({"float32", "bfloat16", "float16", "int8", "float8_e4m3fn"}),
            )
        ]

    def kernels(self) -> Iterable[Kernel]:
        # The reference functions run on meta tensors, which is what "no arithmetic" means here.
        yield from reference_kernels("null")


@hookimpl
def turbort_backends() -> Iterable[Backend]:
    """The null backend."""
    return (Null(),)
