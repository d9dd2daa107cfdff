"""YAML with line numbers, for profiles: a small, safe subset read into plain data. No torch here.

Anchors, aliases, tags, duplicate keys, non-text keys, deep nesting and large files are refused: a profile
needs none of them, and each is a way to make a reader hang or to make a file mean something else than it shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from turbort.errors import InputError

MAX_BYTES = 64 * 1024
MAX_DEPTH = 8
MAX_NODES = 4096
NOT_A_PROFILE = "give a profile, not another kind of file"
Loc = tuple[str | int, ...]
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Document:
    """Plain data (mappings, tuples, scalars) and where each part stands: location -> (file, line)."""

    data: dict[str, Any]
    lines: Mapping[Loc, tuple[str, int]]

    def where(self, loc: Loc) -> str:
        """`file:line` of a location, or of the nearest part around it."""
        file, line = self.lines[self.known(loc)]
        return f"{file}:{line}"

    def known(self, loc: Loc) -> Loc:
        """The longest part of `loc` that stands in the file."""
        return next(loc[:end] for end in range(len(loc), -1, -1) if loc[:end] in self.lines)


def read_file(path: Path) -> Document:
    """Read a YAML file; InputError when it cannot be read or is not a plain mapping."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"cannot read profile {path}: {error.strerror or error}", fix="`turbort profiles list` shows what is there"
        ) from None
    return read_bytes(raw, str(path))


def read_bytes(raw: bytes, source: str) -> Document:
    """Parse YAML bytes; `source` is the file name that errors show."""
    if len(raw) > MAX_BYTES:
        raise InputError(f"{source} is larger than {MAX_BYTES // 1024} KiB, too large for a profile", fix=NOT_A_PROFILE)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{source}:{line}: not UTF-8 text", fix="save the file as UTF-8") from None
    try:
        _refuse_tricks(text, source)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        raise InputError(
            f"{where}: not valid YAML: {error.problem or error.context}", fix="check the indentation, colons and quotes"
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise InputError(f"{source}: not valid YAML: {reason}", fix="save the file as plain UTF-8 text") from None
    if not isinstance(node, yaml.MappingNode):
        raise InputError(f"{source}: a profile is a mapping of keys to values", fix="start from `turbort profiles show cpu`")
    lines: dict[Loc, tuple[str, int]] = {(): (source, 1)}
    data = _Builder(source, lines).value(node, ())
    return Document(data, lines)


def _refuse_tricks(text: str, source: str) -> None:
    """Walk the events, which expands nothing, and refuse what a profile has no use for."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        mark: Any = event.start_mark
        where = f"{source}:{mark.line + 1}"
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise InputError(
                f"{where}: anchors and aliases (& and *) are not allowed in a profile",
                fix="quote the text, or write the value out",
            )
        tag = getattr(event, "tag", None)
        if tag:
            raise InputError(f"{where}: the tag {tag!r} is not allowed in a profile", fix="remove the word that starts with !")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH or count > MAX_NODES:
            raise InputError(f"{where}: nested or long beyond anything a profile needs", fix=NOT_A_PROFILE)


class _Builder:
    """Turns composed nodes into plain data and notes the line of every part."""

    def __init__(self, source: str, lines: dict[Loc, tuple[str, int]]) -> None:
        self.source = source
        self.lines = lines

    def value(self, node: Any, loc: Loc) -> Any:
        self.lines.setdefault(loc, (self.source, node.start_mark.line + 1))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, loc)
        if isinstance(node, yaml.SequenceNode):
            return tuple(self.value(child, (*loc, index)) for index, child in enumerate(node.value))
        return self._scalar(node)

    def _mapping(self, node: Any, loc: Loc) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, child in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise InputError(f"{self.source}:{line}: a key must be a word", fix="write `key: value`")
            key = str(key_node.value)
            if key in data:
                first = self.lines[(*loc, key)][1]
                raise InputError(
                    f"{self.source}:{line}: key {key!r} is given twice (first on line {first})", fix="remove one of the two"
                )
            self.lines[(*loc, key)] = (self.source, line)
            data[key] = self.value(child, (*loc, key))
        return data

    def _scalar(self, node: Any) -> Any:
        """Numbers, booleans, null and text; dates and the like stay the text they were written as."""
        kind = node.tag.rpartition(":")[2]
        if kind not in ("int", "float", "bool", "null"):
            return str(node.value)
        try:
            value = yaml.constructor.SafeConstructor().construct_object(node)
        except (ValueError, OverflowError):
            raise InputError(
                f"{self.source}:{node.start_mark.line + 1}: {node.value!r} is not a number", fix="write a plain decimal number"
            ) from None
        return value


def merge(parent: Document, child: Document) -> Document:
    """`child` over `parent`, mapping by mapping; a `batch` with its own mode and any non-mapping replaces the parent's."""
    lines = dict(parent.lines)

    def over(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
        data = dict(base)
        for key, value in top.items():
            inner: Any = data.get(key)
            whole = key == "batch" and isinstance(value, dict) and "mode" in value
            deep = isinstance(inner, dict) and isinstance(value, dict) and not whole
            data[key] = over(inner, value) if deep else value
        return data

    data = over(parent.data, child.data)
    lines.update(child.lines)
    return Document(data, lines)
