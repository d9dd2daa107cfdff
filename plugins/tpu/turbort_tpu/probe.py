"""Finding TPUs without starting any runtime: a scan of the PCI bus and a look for the packages."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from turbort.backend import Device, Unavailable
from turbort.errors import TurbortError, unknown
from turbort_tpu.executors import EXECUTOR, WAYS, Way, chosen
from turbort_tpu.generations import GENERATIONS, Generation

VENDOR = "0x1ae0"
EMULATE = "TURBORT_TPU_EMULATE"


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
        standing_in, way = emulated(), chosen()
    except TurbortError as error:
        return Unavailable(error.message, f"{error.fix}: {', '.join(WAYS if EXECUTOR in str(error.fix) else GENERATIONS)}")
    if standing_in is not None:
        return _emulated(standing_in, way)
    chips = _scan(bus)
    if not chips:
        return Unavailable(
            "no TPU on the PCI bus (vendor 0x1ae0)",
            f"run on a TPU VM; or set {EMULATE}=v5e to run the same kernels on XLA:CPU; "
            "or `turbort check tpu --targets v5e` to compile for a TPU that is not here",
        )
    if missing := way.missing(emulated=False):
        kinds = ", ".join(f"{count} x {GENERATIONS[name].title}" for name, count in chips.items())
        return Unavailable(f"{kinds} found, but {' and '.join(missing)} cannot be imported", way.install)
    return [describe(GENERATIONS[name], way=way) for name, count in chips.items() for _ in range(count)]


def present(bus: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Whether the PCI bus shows a TPU: the one question that is safe to ask before TorchTPU is used."""
    return bool(_scan(bus))


def _emulated(generation: Generation, way: Way) -> list[Device] | Unavailable:
    if way.no_host:
        return Unavailable(f"{EMULATE}={generation.name} and executor {way.name}: {way.no_host}", f"unset {EXECUTOR}")
    if missing := way.missing(emulated=True):
        return Unavailable(
            f"{EMULATE}={generation.name} needs {' and '.join(missing)}, which cannot be imported", way.install_host
        )
    return [
        describe(
            generation,
            f"XLA:CPU in place of {generation.title}",
            {"emulated": "kernels run on XLA:CPU, Pallas in interpret mode"},
            way,
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


def describe(
    generation: Generation, name: str | None = None, details: dict[str, str] | None = None, way: Way = WAYS["jax"]
) -> Device:
    """A device of this generation; `torch_name` is where the executor keeps tensors outside compiled programs."""
    return Device(
        backend="tpu",
        name=name or generation.title,
        torch_name=way.torch_name,
        arch=generation.name,
        memory=generation.hbm,
        dtypes=generation.dtypes,
        features=generation.features,
        details={"VMEM": f"{generation.vmem >> 20} MiB", "executor": way.name, **(details or {})},
    )
