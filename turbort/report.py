"""The run receipt: what was planned, what really ran, and what it cost. No torch here."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

from turbort.backend import Backend, Device
from turbort.precision import PRECISIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from turbort.job import Result
    from turbort.plan import Plan

REPORT_SCHEMA = 1
PACKAGES = ("turbort", "torch", "triton", "torch-npu", "torch-xla", "transformers", "numpy")


@dataclass
class Stopwatch:
    """Seconds and peak bytes per stage, of tensors and of what is reserved for them.

    The device is synchronised at both ends, so work is charged where it was asked for.
    """

    backend: Backend
    device: Device
    seconds: dict[str, float] = field(default_factory=dict)
    peak: dict[str, int] = field(default_factory=dict)
    reserved: dict[str, int] = field(default_factory=dict)
    used: list[tuple[float, int, str]] = field(default_factory=list)
    """Seconds since the first stage, bytes in use, and the stage, at both ends of every stage."""
    _first: float | None = None

    def _note(self, now: float, name: str) -> None:
        self._first = now if self._first is None else self._first
        used = self.backend.memory(self.device).used
        if used is not None:
            self.used.append((round(now - self._first, 4), used, name))

    def forget(self, name: str) -> None:
        """Drop the peaks of a stage: what comes next is another way to do it."""
        self.peak.pop(name, None)
        self.reserved.pop(name, None)

    @contextmanager
    def stage(self, name: str, counts: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """Charge the block to stage `name`; repeated stages add up. Its peaks count where `counts()` says so at its end."""
        self.backend.synchronize(self.device)
        self.backend.reset_peak(self.device)
        start = perf_counter()
        self._note(start, name)
        try:
            yield
        finally:
            self.backend.synchronize(self.device)
            self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start
            self._note(perf_counter(), name)
            found = self.backend.memory(self.device)
            for peaks, peak in ((self.peak, found.peak), (self.reserved, found.reserved_peak)):
                if peak is not None and counts():
                    peaks[name] = max(peaks.get(name, 0), peak)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a run computes."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            if package == "turbort" and "turbort" in sys.modules:
                found[package] = "not installed"
    return found


def unmet(plan: Plan, executed: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the plan asked for and nothing ran: op and precision, sites planned and sites that ran so.

    Only stages that ran at all are judged. A site that was promoted on the way ran at both precisions, so it counts.
    """
    stages = {row["stage"] for row in executed}
    ran: dict[tuple[str, str, str], int] = {}
    for row in executed:
        key = (row["stage"], row["op"], row["precision"])
        ran[key] = ran.get(key, 0) + row["sites"]
    wanted: dict[tuple[str, str, str], int] = {}
    for choice in plan:
        key = (choice.path.partition("/")[0], choice.op, choice.precision)
        wanted[key] = wanted.get(key, 0) + 1
    return [
        {"stage": key[0], "op": key[1], "precision": key[2], "planned": count, "ran": ran.get(key, 0)}
        for key, count in wanted.items()
        if key[0] in stages and PRECISIONS.get(key[2]) and PRECISIONS[key[2]].kind != "float" and ran.get(key, 0) < count
    ]


def receipt(
    plan: Plan,
    device: Device,
    watch: Stopwatch,
    executed: Sequence[Mapping[str, Any]],
    results: Sequence[Result],
    weights: Mapping[str, str],
) -> dict[str, Any]:
    """The report as plain data, ready for JSON.

    `executed` counts calls as they happened, so a run that silently stayed in another precision shows it.
    Seconds are wall time per stage over all jobs; bytes are the peak of the device during the stage. A stage that took its result
    from a cache has no peak.
    """
    return {
        "report": REPORT_SCHEMA,
        "plan": {**dict(plan.header), "digest": plan.digest},
        "sites": [{key: row.get(key) for key in ("path", "op", "precision", "kernel")} for row in plan.rows()],
        "device": {"backend": device.backend, "name": device.name, "arch": device.arch, "memory": device.memory},
        "versions": versions(),
        "weights": dict(weights),
        "executed": [dict(row) for row in executed],
        "unmet": unmet(plan, executed),
        "fallbacks": [
            {
                "path": choice.path,
                "op": choice.op,
                "kernel": choice.kernel,
                "precision": choice.precision,
                "why": dict(choice.passed_over),
            }
            for choice in plan.fallbacks
        ],
        "seconds": {name: round(value, 4) for name, value in watch.seconds.items()},
        "peak_bytes": dict(watch.peak),
        "reserved_bytes": dict(watch.reserved),
        "memory_over_time": [list(row) for row in watch.used],
        "jobs": [
            {
                "prompt": result.job.prompt,
                "seed": result.job.seed,
                "size": [result.job.width, result.job.height],
                "frames": result.job.frames,
                "fps": result.job.fps,
                "steps": result.job.steps,
                "guidance": result.job.guidance,
                "out": str(result.path) if result.path else None,
                "seconds": {name: round(value, 4) for name, value in result.seconds.items()},
            }
            for result in results
        ],
    }
