"""Profiles: finding them, reading them, and choosing one for a device. What they may say: `turbort.profile_model`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import ValidationError

from turbort.backend import Device
from turbort.errors import InputError, nearest
from turbort.precision import PRECISIONS, Precision
from turbort.profile_adaptive import Adaptive
from turbort.profile_errors import explain
from turbort.profile_model import (
    AttentionShape,
    Batch,
    Graph,
    LinearRange,
    Memory,
    Monitor,
    Precisions,
    Profile,
    Quality,
    Target,
)
from turbort.profile_yaml import Document, merge, read_bytes, read_file

__all__ = [
    "Adaptive",
    "AttentionShape", "Batch", "Entry", "Graph", "LinearRange", "Memory", "Monitor", "Precisions", "Profile", "Quality", "Target",
    "find_profile", "list_profiles", "load_profile", "parse_profile", "pick_profile",
]  # fmt: skip

SUFFIXES = (".yaml", ".yml")
ENVIRONMENT = "TURBORT_PROFILES"


@dataclass(frozen=True)
class Entry:
    """One profile that can be named: where it was found, and the profile or what is wrong with it."""

    name: str
    path: Path
    origin: str
    profile: Profile | None = None
    problem: str | None = None


def load_profile(name: str | Path, extra: Iterable[Path] = (), *, precisions: Mapping[str, Precision] = PRECISIONS) -> Profile:
    """The profile of that name, path, or bare file name (`ascend910`, `my/h100.yaml`, `ascend910.yaml`).

    A name is looked up in the working directory, where a saved plan does not count, then `$TURBORT_PROFILES`, then
    the profiles that come with turbort, then `extra` (files or folders that plugins bring). `precisions` is the
    table that names are checked against. Raises InputError with file and line, or with the nearest names.
    """
    return _read(find_profile(str(name), extra), tuple(extra), precisions)


def find_profile(name: str, extra: Iterable[Path] = ()) -> Path:
    """The file that `name` stands for; InputError with the nearest names when there is none."""
    given = Path(name)
    if any(separator in name for separator in (os.sep, os.altsep) if separator):
        if given.is_file():
            return given
        what = "a folder" if given.is_dir() else "no such file"
        raise InputError(f"profile {name}: {what}", fix="give an existing file, or a name from `turbort profiles list`")
    stem = given.stem if given.suffix in SUFFIXES else name
    here = [Path(f"{stem}{suffix}") for suffix in SUFFIXES]
    if stem == name:  # `turbort plan -o cpu.yaml` must not hide the profile `cpu`
        here = [path for path in here if not _is_plan(path)]
    for path in (*here, *(file for _, file in _files(extra) if file.stem == stem)):
        if path.is_file():
            return path
    known = sorted({file.stem for _, file in _files(extra)})
    close = nearest(stem, known)
    hint = [f"did you mean {' or '.join(repr(word) for word in close)}?"] if close else []
    tried = [*hint, f"known profiles: {', '.join(known)}"]
    raise InputError(f"unknown profile {name!r}", tried=tried, fix="give a known name or the path of a YAML file")


def parse_profile(
    text: str | bytes, source: str = "profile.yaml", *, precisions: Mapping[str, Precision] = PRECISIONS
) -> Profile:
    """A profile from YAML text. `extends` needs a file and is refused here."""
    document = read_bytes(text.encode() if isinstance(text, str) else text, source)
    if "extends" in document.data:
        raise InputError(f"{document.where(('extends',))}: extends works in profile files only", fix="save the profile as a file")
    return _validate(document, Path(source), precisions)


def list_profiles(extra: Iterable[Path] = (), *, precisions: Mapping[str, Precision] = PRECISIONS) -> list[Entry]:
    """Every profile that can be named, first found first; a broken file is a row with its problem."""
    extra = tuple(extra)
    rows: dict[str, Entry] = {}
    for origin, path in _files(extra):
        if path.stem in rows:
            continue
        entry = Entry(path.stem, path, origin)
        try:
            rows[path.stem] = replace(entry, profile=_read(path, extra, precisions))
        except InputError as error:
            rows[path.stem] = replace(entry, problem=error.message)
    return list(rows.values())


def pick_profile(device: Device, entries: Sequence[Entry] | None = None) -> Profile:
    """The profile whose target fits a device best: backend, then architecture, then memory.

    A profile whose memory bound fails is taken only when no other fits. Among the rest the longest matching
    architecture glob wins, then a memory bound that holds. A device that no profile names gets a plain one:
    its best float precision, no quantisation.
    """
    rows = list_profiles() if entries is None else entries
    fitting = [row.profile for row in rows if row.profile and _arch_score(row.profile, device) >= 0]
    if not fitting:
        return _plain(device)

    def rank(profile: Profile) -> tuple[bool, int, int]:
        memory = _memory_score(profile, device)
        return memory > 0, _arch_score(profile, device), memory

    return max(fitting, key=rank)


def _arch_score(profile: Profile, device: Device) -> int:
    """Characters of the longest glob that matches, without its wildcards; -1 when the target is another device."""
    if profile.target.backend != device.backend:
        return -1
    return max((len(glob.replace("*", "")) for glob in profile.target.arch if fnmatchcase(device.arch, glob)), default=-1)


def _memory_score(profile: Profile, device: Device) -> int:
    """2: the bound holds; 1: nothing is known; 0: it does not hold."""
    if profile.target.memory is None or device.memory is None:
        return 1
    return 2 if profile.target.memory.allows(device.memory) else 0


def _plain(device: Device) -> Profile:
    name = next((name for name, dtype in (("bf16", "bfloat16"), ("fp16", "float16")) if dtype in device.dtypes), "fp32")
    return Profile(
        name=f"{device.backend}-default",
        description=f"made for {device.name}, which no profile names",
        target=Target(backend=device.backend),
        precision=Precisions(io=name, compute=name, attention=name, linear=LinearRange(max=name, min=name), vae=name, text=name),
    )


def _read(path: Path, extra: tuple[Path, ...], precisions: Mapping[str, Precision]) -> Profile:
    if _is_plan(path):
        raise InputError(f"{path} is a plan, not a profile", fix=f"replay it with `turbort run --plan {path}`, or name a profile")
    document = read_file(path)
    parent = document.data.pop("extends", None)
    if parent is not None:
        document = merge(_parent(parent, path, document, extra), document)
    return _validate(document, path, precisions)


def _is_plan(path: Path) -> bool:
    """Whether a file is a plan of `turbort plan -o`, which begins with `plan:`."""
    try:
        with path.open("rb") as stream:
            return stream.read(5) == b"plan:"
    except OSError:
        return False


def _parent(name: object, path: Path, document: Document, extra: tuple[Path, ...]) -> Document:
    """The profile that `extends` names, beside the file or by name; it must stand on its own."""
    where = document.where(("extends",))
    if not isinstance(name, str):
        raise InputError(f"{where}: extends: {name!r} is not the name of a profile", fix="write extends: h100")
    beside = [path.parent / name, *(path.parent / f"{name}{suffix}" for suffix in SUFFIXES)]
    file = next((item for item in beside if item.is_file() and not item.samefile(path) and not _is_plan(item)), None)
    try:
        file = file or find_profile(name, extra)
    except InputError as error:
        raise InputError(f"{where}: extends: {error.message}", tried=error.tried, fix=error.fix) from None
    if file.samefile(path):
        raise InputError(f"{where}: the profile extends itself", fix="name another profile, or remove extends")
    parent = read_file(file)
    if "extends" in parent.data:
        raise InputError(
            f"{where}: {file.stem} extends another profile itself; only one level is allowed",
            fix=f"extend {parent.data['extends']} and repeat what {file.stem} changes",
        )
    parent.data.pop("name", None)
    return parent


def _validate(document: Document, path: Path, precisions: Mapping[str, Precision]) -> Profile:
    try:
        profile = Profile.model_validate({"name": path.stem, **document.data}, context={"precisions": precisions})
    except ValidationError as error:
        raise explain(error, document) from None
    return profile.from_file(str(path))


def _files(extra: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """Profile files with their origin, in the order of the search."""
    for item in filter(None, os.environ.get(ENVIRONMENT, "").split(os.pathsep)):
        yield from (("environment", file) for file in _expand(Path(item)))
    yield from (("turbort", file) for file in _expand(_shipped()))
    for path in extra:
        yield from (("plugin", file) for file in _expand(path))


def _expand(path: Path) -> list[Path]:
    """A file as it is; the profiles of a folder by name; nothing for what cannot be read."""
    try:
        if path.is_dir():
            return sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        return [path] if path.is_file() else []
    except OSError:
        return []


def _shipped() -> Path:
    """The folder of the profiles that come with turbort: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).parent
    return package / "profiles" if (package / "profiles").is_dir() else package.parent / "profiles"
