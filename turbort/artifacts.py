"""Folders that `turbort compile` writes: a plan, what a backend compiled for it, and a manifest that ties them together.

    manifest.json   {"artifacts": 1, "plan": digest of plan.yaml, "model", "profile", "backend", "targets",
                     "files": [{"path", "bytes", "sha256"}], "facts": what the compiler said, "versions"}
    plan.yaml       the plan, for `turbort run --plan DIR`
    ...             the backend's files
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from turbort.errors import PlanError
from turbort.io import atomic_text
from turbort.plan import Plan

ARTIFACTS_SCHEMA = 1
MANIFEST, PLAN = "manifest.json", "plan.yaml"
FIX = "compile it again with `turbort compile`"


@dataclass(frozen=True)
class File:
    """A file of the folder, by its path inside it."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a folder holds and for what it was made."""

    plan: str
    backend: str
    files: tuple[File, ...]
    facts: Mapping[str, Any]
    header: Mapping[str, Any]

    def dumps(self) -> str:
        document = {
            "artifacts": ARTIFACTS_SCHEMA,
            "plan": self.plan,
            "backend": self.backend,
            **self.header,
            "files": [asdict(file) for file in self.files],
            "facts": dict(self.facts),
        }
        return json.dumps(document, indent=1, default=str) + "\n"


def write(folder: Path, plan: Plan, facts: Mapping[str, Any]) -> Manifest:
    """Complete a folder into which a backend has compiled: the plan and the manifest of every file."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_text(folder / PLAN, plan.dumps())
    files = tuple(_file(folder, path) for path in _every(folder))
    header = {key: plan.header[key] for key in ("model", "profile", "arch", "size", "frames", "batch")}
    manifest = Manifest(plan.digest, str(plan.header["backend"]), files, facts, header)
    atomic_text(folder / MANIFEST, manifest.dumps())
    return manifest


def load(folder: Path) -> tuple[Plan, Manifest]:
    """Plan and manifest of a folder whose every file is as it was written; PlanError naming what is not."""
    path = folder / MANIFEST
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        schema = document.pop("artifacts")
        files = tuple(File(str(row["path"]), int(row["bytes"]), str(row["sha256"])) for row in document.pop("files"))
        made = Manifest(document.pop("plan"), document.pop("backend"), files, document.pop("facts"), document)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PlanError(f"{path} is no manifest: {error}", fix=FIX) from None
    if schema != ARTIFACTS_SCHEMA:
        raise PlanError(f"{path} has schema {schema}, this version reads {ARTIFACTS_SCHEMA}", fix=FIX)
    wrong = list(_differences(folder, files))
    plan = Plan.load(folder / PLAN)
    if plan.digest != made.plan:
        wrong.append(f"{PLAN} is plan {plan.digest}, the manifest is for {made.plan}")
    if wrong:
        raise PlanError(f"{folder} is not as it was compiled", tried=wrong[:10], fix=FIX)
    return plan, made


def _differences(folder: Path, files: Iterable[File]) -> Iterable[str]:
    root = folder.resolve()
    for file in files:
        path = (folder / file.path).resolve()
        if not path.is_relative_to(root):
            yield f"{file.path} lies outside the folder"
        elif not path.is_file():
            yield f"{file.path} is missing"
        elif _file(folder, folder / file.path) != file:
            yield f"{file.path} has changed"


def _every(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)


def _file(folder: Path, path: Path) -> File:
    data = path.read_bytes()
    return File(path.relative_to(folder).as_posix(), len(data), hashlib.sha256(data).hexdigest())
