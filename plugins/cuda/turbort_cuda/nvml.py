"""What the driver says of a card through NVML, when `nvidia-ml-py` is installed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

MIB = 1 << 20


@contextmanager
def _session() -> Iterator[Any]:
    """The initialised pynvml module, or None."""
    if importlib.util.find_spec("pynvml") is None:
        yield None
        return
    pynvml = importlib.import_module("pynvml")
    try:
        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 - no driver, no permission: NVML only adds details
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def driver_version() -> str | None:
    """The version of the NVIDIA driver; None where NVML is missing or finds none."""
    with _session() as nvml:
        return None if nvml is None else _text(nvml.nvmlSystemGetDriverVersion())


def card_details(uuid: str | None) -> Mapping[str, str]:
    """Driver, free memory, power limit and clock of the card with this UUID. Empty without NVML."""
    with _session() as nvml:
        if nvml is None:
            return {}
        rows = {"driver": _text(nvml.nvmlSystemGetDriverVersion())}
        try:
            full = uuid if uuid is None or uuid.startswith("GPU-") else f"GPU-{uuid}"
            handle = nvml.nvmlDeviceGetHandleByUUID(full) if full else nvml.nvmlDeviceGetHandleByIndex(0)
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            rows["memory free"] = f"{memory.free // MIB} of {memory.total // MIB} MiB"
            rows["power limit"] = f"{nvml.nvmlDeviceGetEnforcedPowerLimit(handle) // 1000} W"
            rows["SM clock"] = f"at most {nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)} MHz"
        except Exception:  # noqa: BLE001 - virtual machines hide some of these
            return rows
        return rows


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
