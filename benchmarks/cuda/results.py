"""Rows of a measurement: printed as a table, kept in a file as they come, and written as JSON with device and versions."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.cuda.timing import DEVICE, Timed, ceilings, timed
from benchmarks.machine import commit

RESULTS = Path(__file__).resolve().parent.parent / "results"
HIDDEN = ("name", "low", "high", "repetitions", "config", "share_of_copy")
"""What a printed line leaves out; files have it."""


class Results:
    """Collects rows of one command; a contender that fails becomes a row with its error, not the end of the run.

    `rows_file` gets every row as a line of JSON as soon as it is there.
    """

    def __init__(self, command: str, rows_file: Path | None = None) -> None:
        self.command = command
        self.rows: list[dict[str, Any]] = []
        self._file = rows_file

    def time(
        self, name: str, call: Callable[[], Any], *, flop: float = 0.0, bytes_: float = 0.0, seconds: float = 0.3, **more: Any
    ) -> Timed | None:
        """Time `call` and add its row: ms, spread, TFLOP/s and TB/s where given, and the share of the copy ceiling."""
        try:
            found = timed(call, seconds=seconds)
        except Exception as error:  # noqa: BLE001 - one contender may be missing or not fit
            self.note(name, error=f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}", **more)
            return None
        row = {"name": name, **found.row(), **more}
        if flop:
            row["tflop_s"] = flop / found.ms / 1e9
        if bytes_:
            row["tb_s"] = bytes_ / found.ms / 1e9
            row["share_of_copy"] = row["tb_s"] / ceilings()["copy_tb_s"]
        self._add(row)
        return found

    def note(self, name: str, **values: Any) -> None:
        """A row without a time."""
        self._add({"name": name, **values})

    def _add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        print(line_of(row), flush=True)
        if self._file:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, default=str) + "\n")

    def write(self, folder: Path = RESULTS) -> Path:
        """benchmarks/results/cuda_<command>_<device>.json."""
        device = device_name().replace(" ", "_")
        content = {"command": self.command, "machine": machine(), "ceilings": ceilings(), "rows": self.rows}
        path = folder / f"cuda_{self.command}_{device}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
        print(f"wrote {path}")
        return path


def line_of(row: dict[str, Any]) -> str:
    """A row as one printed line."""
    parts = [f"{row['name']:<44}"]
    for key, value in row.items():
        if key not in HIDDEN:
            parts.append(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}")
    return " ".join(parts)[:260]


def device_name() -> str:
    return torch.cuda.get_device_name() if DEVICE == "cuda" else "interpreter"


def machine() -> dict[str, Any]:
    """Device, driver-independent versions and commit."""
    found: dict[str, Any] = {"device": device_name()}
    if DEVICE == "cuda":
        found["multiprocessors"] = torch.cuda.get_device_properties(0).multi_processor_count
    for package in ("torch", "triton", "sageattention", "diffusers"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    try:
        found["commit"] = commit()
    except Exception:  # noqa: BLE001 - a copied tree has no git
        found["commit"] = "unknown"
    return found
