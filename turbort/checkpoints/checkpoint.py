"""Checkpoints: weights by the names of turbort's models, read one tensor at a time after everything has been checked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from turbort.checkpoints.ahead import read_ahead
from turbort.checkpoints.detect import detect
from turbort.checkpoints.dialect import Dialect, Entry, Value
from turbort.checkpoints.digest import digest_files
from turbort.checkpoints.locate import open_source
from turbort.checkpoints.prefixes import strip_prefixes
from turbort.checkpoints.source import Source, refuse, shorten, unreadable
from turbort.checkpoints.turbodiffusion import unflatten_patch
from turbort.errors import CheckpointError
from turbort.quant.qtensor import QTensor


@dataclass(frozen=True)
class Checkpoint:
    """Weights that have been found and understood, but not read.

    Attributes:
        path: what the user named.
        dialect: how they are stored and named.
        entries: weights by logical name (Wan's names for the transformer and the VAE, Hugging Face's for umT5).
        files: every file they lie in.
        metadata: free text that the files carry.
        note: what was changed after reading (LoRAs); part of the digest.
    """

    path: Path
    dialect: Dialect
    entries: Mapping[str, Entry]
    files: tuple[Path, ...]
    metadata: Mapping[str, str]
    note: str = ""

    def logical(self) -> Mapping[str, Callable[[], Value]]:
        """A function per weight that reads it: a tensor, or a QTensor with the file's own codes and scales."""
        return {name: entry.read for name, entry in self.entries.items()}

    @cached_property
    def digest(self) -> str:
        """A name for the content, see `turbort.checkpoints.digest`."""
        try:
            return digest_files(self.files) + self.note
        except OSError as error:
            raise unreadable(self.path, error.strerror or error) from error


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Find, open and understand the weights at `path`: a file, an index of shards, or a folder.

    Reads headers only. Raises CheckpointError when the weights are not there, damaged, unsafe, in a dialect that turbort does
    not read, or contradict themselves.
    """
    source = open_source(path)
    clean = source.renamed(strip_prefixes(source.headers))
    dialect = detect(clean.headers, source.metadata, path=source.path)
    stored = dialect.storage.entries(clean)
    entries = _logical(source, dialect, stored)
    unflatten_patch(entries)
    return Checkpoint(source.path, dialect, entries, source.files, source.metadata)


def _logical(source: Source, dialect: Dialect, stored: Mapping[str, Entry]) -> dict[str, Entry]:
    names = dialect.naming.logical(stored)
    entries: dict[str, Entry] = {}
    clashes = []
    for old, entry in stored.items():
        if names[old] in entries:
            clashes.append(f"{', '.join(entry.sources)} and {', '.join(entries[names[old]].sources)} are both {names[old]}")
        entries[names[old]] = entry
    refuse(source.path, "tensors under the same name", clashes)
    for second, first in (dialect.naming.aliases or {}).items():
        # Tied weights: whichever of the two is stored serves both, and neither is missing or surplus.
        if first in entries:
            entries[second] = replace(entries.get(second, entries[first]), alias=True)
        elif second in entries:
            entries[first] = entries[second]
            entries[second] = replace(entries[second], alias=True)
    return entries


def stream(
    checkpoint: Checkpoint,
    expected: Mapping[str, tuple[int, ...]],
    *,
    ignore: Collection[str] = (),
    optional: Collection[str] = (),
    device: torch.device | None = None,
) -> Iterator[tuple[str, Value]]:
    """The weights of a model one by one, in the order of `expected`, which maps names to shapes.

    `device` says where they will go, so that an accelerator's are read ahead of it (`turbort.checkpoints.ahead`).

    Everything is checked before the first weight is read, from headers alone: a name that is missing or surplus, a wrong
    shape, or a dtype that is no weight raises CheckpointError with the first ten of each and the number of the rest.
    `ignore` are globs of surplus names to pass over (`encoder.*`), `optional` globs of expected names that may be missing.
    """
    _check(checkpoint, expected, ignore, optional)
    entries = ((name, checkpoint.entries[name]) for name in expected if name in checkpoint.entries)
    return read_ahead(entries, device or torch.device("cpu"))


def _check(
    checkpoint: Checkpoint, expected: Mapping[str, tuple[int, ...]], ignore: Collection[str], optional: Collection[str]
) -> None:
    entries = checkpoint.entries
    missing = [name for name in expected if name not in entries and not _matches(name, optional)]
    surplus = [name for name, entry in entries.items() if name not in expected and not entry.alias and not _matches(name, ignore)]
    shapes = [
        f"{name} is {list(entries[name].shape)}, the model has {list(shape)}"
        for name, shape in expected.items()
        if name in entries and entries[name].shape != tuple(shape)
    ]
    dtypes = [
        f"{name} is {entries[name].dtype}, which is no weight without a scale that belongs to it"
        for name in expected
        if name in entries and not entries[name].dtype.is_floating_point
    ]
    groups = {
        "missing": missing,
        "unexpected": [_as_stored(name, entries[name]) for name in surplus],
        "wrong shape": shapes,
        "wrong dtype": dtypes,
    }
    if not any(groups.values()):
        return
    counts = ", ".join(f"{len(lines)} {kind}" for kind, lines in groups.items() if lines)
    described = f"{checkpoint.path} (dialect {checkpoint.dialect.name}, {len(entries)} tensors)"
    raise CheckpointError(
        f"the weights in {described} do not fit the model: {counts}",
        tried=[f"{kind}: {line}" for kind, lines in groups.items() for line in shorten(lines)],
        fix="check that the model named is the one these weights were made for",
    )


def _matches(name: str, globs: Collection[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def _as_stored(name: str, entry: Entry) -> str:
    return name if entry.sources == (name,) else f"{name} (stored as {', '.join(entry.sources)})"


Place = Callable[[str, Value], Any]


def load_into(
    model: nn.Module,
    checkpoint: Checkpoint,
    *,
    place: Place | None = None,
    ignore: Collection[str] = (),
    optional: Collection[str] = (),
) -> None:
    """Fill a model that was built on meta, holding one weight at a time twice at most.

    `place(name, value)` returns what the module keeps: a tensor becomes a parameter without gradient, anything else (a packed
    weight) a plain attribute in its stead. Without it weights are kept in the parameter's own dtype. Arguments and errors are
    those of `stream`.
    """
    parameters = dict(model.named_parameters())
    expected = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    for name, value in stream(checkpoint, expected, ignore=ignore, optional=optional):
        kept = place(name, value) if place else _in_dtype(value, parameters[name])
        owner, _, attribute = name.rpartition(".")
        module = model.get_submodule(owner)
        if isinstance(kept, Tensor):
            setattr(module, attribute, nn.Parameter(kept, requires_grad=False))
        else:
            delattr(module, attribute)
            setattr(module, attribute, kept)


def _in_dtype(value: Value, like: Tensor) -> Tensor:
    return value.dequantize(like.dtype) if isinstance(value, QTensor) else value.to(like.dtype)
