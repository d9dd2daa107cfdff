"""From a path to tensors: a file of either format, an index with its shards, or a folder that holds one of these."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from turbort.checkpoints.gguf_file import read_gguf
from turbort.checkpoints.pickle_file import PLAIN, read_pickle
from turbort.checkpoints.safetensors_file import read_safetensors
from turbort.checkpoints.sidecar import sidecars
from turbort.checkpoints.source import Header, Source, refuse, shorten, unreadable
from turbort.errors import CheckpointError

PICKLES = (".pth", ".pt", ".bin", ".ckpt")
INDEX = ".index.json"
ZIP, OLD_PICKLE, GGUF = b"PK\x03\x04", b"\x80", b"GGUF"
TEXTS = {
    b"version https://git-lfs": ("a Git LFS pointer, not the file it points to", "git lfs pull"),
    b"<!doctype": ("an HTML page, not weights", "download the file itself; this may be a login or error page"),
    b"<html": ("an HTML page, not weights", "download the file itself; this may be a login or error page"),
}


def open_source(path: str | Path) -> Source:
    """The tensors at `path`, whatever form they are in; files are told apart by content, not by name.

    Raises CheckpointError when nothing is there, when it is ambiguous, or when it cannot be read.
    """
    place = Path(path).expanduser()
    try:
        if place.is_dir():
            return _described(_open_folder(place), place)
        if not place.exists():
            raise CheckpointError(f"there are no weights at {place}: it does not exist", fix="check the path")
        if not place.is_file():
            raise CheckpointError(f"there are no weights at {place}: it is neither a file nor a folder", fix="check the path")
        return _described(_open_index(place) if place.name.endswith(INDEX) else _open_file(place), place.parent)
    except OSError as error:
        raise unreadable(place, error.strerror or error, fix="check the path and its permissions") from error


def _described(source: Source, folder: Path) -> Source:
    """The same tensors with what JSON files beside them say; the file's own metadata comes first."""
    return replace(source, metadata={**sidecars(folder, set(source.headers)), **source.metadata})


def _open_file(path: Path) -> Source:
    with path.open("rb") as file:
        start = file.read(32)
    if not start:
        raise unreadable(path, "the file is empty")
    for mark, (what, fix) in TEXTS.items():
        if start.lower().startswith(mark):
            raise CheckpointError(f"{path} is {what}", fix=fix)
    if start.startswith(GGUF):
        return read_gguf(path)
    if start.startswith(ZIP):
        return read_pickle(path)
    if start.startswith(OLD_PICKLE) and start[8:9] != b"{":
        raise CheckpointError(f"{path} is a pickle outside torch's zip format, so it was not loaded", fix=PLAIN)
    return read_safetensors(path)


def _open_folder(folder: Path) -> Source:
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    indexes = [name for name in names if name.endswith(INDEX)]
    safetensors = [name for name in names if name.endswith(".safetensors")]
    pickles = [name for name in names if name.endswith(PICKLES)]
    ggufs = [name for name in names if name.endswith(".gguf")]
    if len(indexes) == 1:
        return _open_index(folder / indexes[0])
    if not indexes and safetensors:
        return merge(folder, [read_safetensors(folder / name) for name in safetensors])
    if not indexes and len(pickles) == 1:
        return _open_file(folder / pickles[0])
    if not indexes and not pickles and len(ggufs) == 1:
        return _open_file(folder / ggufs[0])
    choices = indexes or pickles or ggufs
    raise CheckpointError(
        f"{folder} holds {'several sets of weights' if choices else 'no weights'}",
        tried=shorten(choices or names or ["the folder is empty"]),
        fix="name the file to load" if choices else "name a .safetensors or .pth file, or a folder that holds one",
    )


def _open_index(path: Path) -> Source:
    """Shards as a `*.index.json` lists them; it may name only files that lie beside it."""
    weight_map = _weight_map(path)
    shards = sorted(set(weight_map.values()))
    outside = [name for name in shards if name in ("", ".", "..") or any(mark in name for mark in "/\\\0")]
    refuse(path, "shard names that are not plain file names", [repr(name) for name in outside])
    missing = [name for name in shards if not (path.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{path} lists {len(shards)} shards, of which {len(missing)} are not there",
            tried=shorten(missing),
            fix=f"download the missing files into {path.parent}",
        )
    sources = {name: _open_file(path.parent / name) for name in shards}
    absent = [f"{key} is not in {shard}" for key, shard in weight_map.items() if key not in sources[shard].headers]
    refuse(path, "names that its shards lack", absent)
    return merge(path, list(sources.values()))


def _weight_map(path: Path) -> Mapping[str, str]:
    try:
        index = json.loads(path.read_bytes())
        weight_map = index["weight_map"]
        plain = bool(weight_map) and all(isinstance(name, str) for pair in weight_map.items() for name in pair)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise unreadable(path, f"it is not an index of shards ({type(error).__name__}: {error})") from error
    if not plain:
        raise unreadable(path, "its weight_map does not map names to file names")
    mapping: Mapping[str, str] = weight_map
    return mapping


def merge(path: Path, sources: Sequence[Source]) -> Source:
    """Several files as one. Raises CheckpointError when a name is in two of them."""
    if len(sources) == 1:
        only = sources[0]
        return Source(path, only.headers, only.load, only.files, only.metadata)
    headers: dict[str, Header] = {}
    owner: dict[str, Source] = {}
    metadata: dict[str, str] = {}
    twice = []
    for source in sources:
        twice += [f"{name} is in {owner[name].path.name} and {source.path.name}" for name in source.headers if name in owner]
        headers.update(source.headers)
        owner.update(dict.fromkeys(source.headers, source))
        metadata.update(source.metadata)
    refuse(path, "tensors that are in two files", twice, fix="name one of the files, or remove those that do not belong")

    def load(name: str) -> Tensor:
        return owner[name].load(name)

    return Source(path, headers, load, tuple(file for source in sources for file in source.files), metadata)
