"""Switching to the emulated driver: real torch-npu over turbort's stand-in for AscendCL, arithmetic by references.

The stand-in is test machinery (`plugins/ascend/tests/host`) and is found in a checkout of turbort, not in its wheel.
What it proves is wiring, shapes, dtypes and allocation; it says nothing about an NPU's speed or rounding.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from turbort import InputError, UnavailableError
from turbort_ascend.soc import FAMILIES, family_of

HOST = Path(__file__).resolve().parents[1] / "tests" / "host"
_state: dict[str, str] = {}


def active() -> bool:
    """Whether this process runs on the emulated driver."""
    return bool(_state)


def start(chip: str, *, arithmetic: bool = True) -> None:
    """Load the emulated driver for `chip`, then torch-npu over it; once per process.

    `arithmetic` also computes every op on the CPU; without it ops are only recorded. Raises UnavailableError without
    torch-npu or a checkout, InputError for a chip of no known family or a second chip.
    """
    if _state:
        if _state["chip"] != chip:
            raise InputError(f"this process already emulates {_state['chip']}, not {chip}", fix="start another process")
        if arithmetic and "arithmetic" not in _state:
            raise InputError("this process emulates the driver without arithmetic", fix="start another process")
        return
    if family_of(chip) is None:
        raise InputError(
            f"no chip family matches {chip!r}", tried=[f"known: {', '.join(name for row in FAMILIES for name in row.chips)}"]
        )
    if find_spec("torch_npu") is None:
        raise UnavailableError("emulation runs the real torch-npu, which is not installed", fix="make ascend-venv")
    if not (HOST / "ascend_host").is_dir():
        raise UnavailableError(
            "the emulated driver is part of turbort's sources, not of its wheel", fix="run from a checkout: pip install -e ."
        )
    if str(HOST) not in sys.path:
        sys.path.append(str(HOST))
    os.environ["FAKE_ACL_SOC"] = chip
    from ascend_host.driver import load  # type: ignore[import-not-found,unused-ignore]

    load()
    from turbort_ascend.device import load_torch_npu

    load_torch_npu()
    _state["chip"] = chip
    if arithmetic:
        from ascend_host.emulator import Emulator  # type: ignore[import-not-found,unused-ignore]

        Emulator().install()
        _state["arithmetic"] = "references"
