"""Executables that `turbort compile` wrote, and how a run finds and loads the one that fits.

    programs.json       [{"file", "sha256", "peak": bytes of device memory, "signature": {...}}]
    step.executable     what `jax.experimental.serialize_executable` makes of the compiled step

An executable is code, and its file is a pickle, which can run code when it is read. It is read only from a folder that the user
named and whose manifest was checked, only once its signature fits, and only if its bytes have the digest of the index.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jax.experimental import serialize_executable

from turbort.errors import PlanError
from turbort.io import atomic_text
from turbort.io.atomic import atomic_bytes
from turbort_tpu.jax_executor.signature import Signature

FIX = "compile it again with `turbort compile`"
INDEX, EXECUTABLE = "programs.json", "step.executable"


@dataclass(frozen=True)
class Entry:
    """One executable in a folder: its file, the digest of the file, the compiler's peak in bytes, and what it is good for."""

    path: Path
    sha256: str
    peak: int
    signature: Signature

    def load(self, trees: tuple[Any, Any], device: Any) -> tuple[Any | None, str]:
        """The executable on `device`, or None and the reason; `trees` are the structures of its arguments and results."""
        try:
            data = self.path.read_bytes()
        except OSError as error:
            return None, f"{self.path} cannot be read: {error.strerror}"
        if hashlib.sha256(data).hexdigest() != self.sha256:
            return None, f"{self.path} is not the file that was compiled"
        try:
            return serialize_executable.deserialize_and_load(data, *trees, execution_devices=[device]), ""
        except Exception as error:  # noqa: BLE001 - runtimes refuse foreign executables with many types
            return None, f"the runtime does not load {self.path}: {first_line(error)}"


class Shelf:
    """The executables that a run may use."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._folders: list[Path] = []

    def __bool__(self) -> bool:
        """Whether any folder was named, be there something in it or not."""
        return bool(self._folders)

    def add(self, folder: Path) -> None:
        """Take what the folder's index lists; nothing is unpickled yet. PlanError for an index that cannot be read."""
        self._folders.append(folder)
        index = folder / INDEX
        if not index.is_file():
            return
        try:
            for row in json.loads(index.read_text(encoding="utf-8")):
                path = folder / Path(row["file"]).name
                self._entries.append(Entry(path, row["sha256"], int(row["peak"]), Signature.from_data(row["signature"])))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise PlanError(f"{index} is no list of executables: {error}", fix=FIX) from None

    def find(self, wanted: Signature) -> tuple[Entry | None, str]:
        """The newest entry that serves, or None and why the nearest one does not."""
        judged = [(entry.signature.unlike(wanted), entry) for entry in reversed(self._entries)]
        if not judged:
            return None, f"{self._folders[-1]} holds no executable for TPUs"
        reasons, nearest = min(judged, key=lambda pair: len(pair[0]))
        return (None, f"{nearest.path}: {reasons[0]}") if reasons else (nearest, "")


def write(folder: Path, compiled: Any, signature: Signature, peak: int) -> None:
    """Serialise a compiled step into `folder`, with its index."""
    data, _, _ = serialize_executable.serialize(compiled)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_bytes(folder / EXECUTABLE, data)
    row = {"file": EXECUTABLE, "sha256": hashlib.sha256(data).hexdigest(), "peak": peak, "signature": asdict(signature)}
    atomic_text(folder / INDEX, json.dumps([row], indent=1) + "\n")


def first_line(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')[:200]}"
