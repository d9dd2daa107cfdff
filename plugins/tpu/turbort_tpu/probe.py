"""Finding TPUs without starting any runtime: a scan of the PCI bus and a look for the packages."""

from __future__ import annotations

import os
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

from turbort.backend import Device, Unavailable
from turbort.errors import unknown
from turbort_tpu.generations import GENERATIONS, Generation

VENDOR = "0x1ae0"
EMULATE = "TURBORT_TPU_EMULATE"
JAX = "0.10.2"
INSTALL = f'pip install "jax[tpu]=={JAX}"'
INSTALL_HOST = f'pip install "jax=={JAX}"'


def emulated() -> Generation | None:
    """The generation that XLA:CPU stands in for (`TURBORT_TPU_EMULATE=v5e`), or None. InputError for an unknown name."""
    name = os.environ.get(EMULATE, "")
    if not name:
        return None
    if name not in GENERATIONS:
        raise unknown("TPU generation", name, GENERATIONS, fix=f"set {EMULATE} to one of them")
    return GENERATIONS[name]


def find(bus: Path = Path("/sys/bus/pci/devices")) -> list[Device] | Unavailable:
    """The TPUs of this host as devices, or why there are none."""
    try:
        standing_in = emulated()
    except Exception as error:  # noqa: BLE001 - a probe answers, it does not raise
        return Unavailable(str(error).splitlines()[0], f"unset {EMULATE}, or set it to {', '.join(GENERATIONS)}")
    if standing_in is not None:
        return _emulated(standing_in)
    chips = _scan(bus)
    if not chips:
        return Unavailable(
            "no TPU on the PCI bus (vendor 0x1ae0)",
            f"run on a TPU VM; or set {EMULATE}=v5e to run the same kernels on XLA:CPU; "
            "or `turbort check tpu --targets v5e` to compile for a TPU that is not here",
        )
    missing = [name for name in ("jax", "libtpu") if find_spec(name) is None]
    if missing:
        kinds = ", ".join(f"{count} x {GENERATIONS[name].title}" for name, count in chips.items())
        return Unavailable(f"{kinds} found, but {' and '.join(missing)} cannot be imported", INSTALL)
    return [describe(GENERATIONS[name]) for name, count in chips.items() for _ in range(count)]


def _emulated(generation: Generation) -> list[Device] | Unavailable:
    if find_spec("jax") is None:
        return Unavailable(f"{EMULATE}={generation.name} needs jax, which cannot be imported", INSTALL_HOST)
    return [
        describe(
            generation,
            f"XLA:CPU in place of {generation.title}",
            {"emulated": "kernels run on XLA:CPU, Pallas in interpret mode"},
        )
    ]


def _scan(bus: Path) -> Counter[str]:
    """How many chips of each generation the PCI bus shows."""
    found: Counter[str] = Counter()
    ids = {row.pci: row.name for row in GENERATIONS.values()}
    for folder in sorted(bus.glob("*")) if bus.is_dir() else ():
        if _read(folder / "vendor") == VENDOR and (name := ids.get(_read(folder / "device"))):
            found[name] += 1
    return found


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip().lower()
    except (OSError, UnicodeDecodeError):
        return ""


def describe(generation: Generation, name: str | None = None, details: dict[str, str] | None = None) -> Device:
    """A device of this generation. Tensors outside compiled programs live on the host, hence torch's `cpu`."""
    return Device(
        backend="tpu",
        name=name or generation.title,
        torch_name="cpu",
        arch=generation.name,
        memory=generation.hbm,
        dtypes=generation.dtypes,
        features=generation.features,
        details={"VMEM": f"{generation.vmem >> 20} MiB", "executor": "jax", **(details or {})},
    )
