"""An example backend: the CPU again, under another name, with one kernel of its own.

This file is all that turbort imports to list devices and kernels. It imports nothing but turbort: torch and
vendor packages load when a plan binds the kernel, not before.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from typing import ClassVar

from turbort import Backend, Call, Device, Kernel, hookimpl

WIDEST = 8192


class Example(Backend):
    """Computes RMS norms; for every other op the planner falls back to the reference."""

    name = "example"
    unsupported: ClassVar = {"rms_norm/*/*/b2-*": "the toy chip holds one video at a time"}

    def probe(self) -> list[Device]:
        return [
            Device(
                backend=self.name,
                name="toy chip",
                torch_name="cpu",
                arch=platform.machine() or "cpu",
                dtypes=frozenset({"float32", "bfloat16"}),
                features=frozenset({"toy"}),
                details={"driver": "none needed"},
            )
        ]

    def kernels(self) -> Iterable[Kernel]:
        yield Kernel(
            op="rms_norm",
            name="chunked",
            target="turbort_example.rms_norm:rms_norm",
            precisions=("fp32", "bf16"),
            rejects=_too_wide,
            requires=frozenset({"toy"}),
            priority=10,
        )


def _too_wide(call: Call, device: Device) -> str | None:
    width = call["x"].shape[-1]
    return f"rows of {width} exceed the on-chip buffer of {WIDEST}" if width > WIDEST else None


@hookimpl
def turbort_backends() -> Iterable[Backend]:
    """The backends of this plugin."""
    return (Example(),)
