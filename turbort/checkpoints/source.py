"""Tensors by name as a file holds them. Headers are read at once, values when asked for, mapped rather than copied."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from turbort.errors import CheckpointError

LISTED = 10
"""How many offending names an error lists before it only counts."""


@dataclass(frozen=True, slots=True)
class Header:
    """Shape and dtype of a tensor as `Source.load` returns it; `stored` names the format in the file where that differs."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    stored: str | None = None


@dataclass(frozen=True)
class Source:
    """What lies in one file, or in several that belong together.

    Attributes:
        path: what the user named.
        headers: shape and dtype by name.
        load: the tensor of that name, on the CPU; a view of the mapped file where the format allows it.
        files: every file that is read.
        metadata: free text that the file carries.
    """

    path: Path
    headers: Mapping[str, Header]
    load: Callable[[str], Tensor]
    files: tuple[Path, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def renamed(self, names: Mapping[str, str]) -> Source:
        """The same tensors under new names; `names` maps every old name to its new one.

        Raises CheckpointError when two tensors would get the same name.
        """
        back: dict[str, str] = {}
        clashes = []
        for old, new in names.items():
            if new in back:
                clashes.append(f"{back[new]} and {old} are both {new}")
            back[new] = old
        refuse(self.path, "tensors under the same name", clashes)
        headers = {new: self.headers[old] for new, old in back.items()}
        load = self.load
        return Source(self.path, headers, lambda name: load(back[name]), self.files, self.metadata)


def shorten(lines: Iterable[str], listed: int = LISTED) -> list[str]:
    """The first `listed` lines and a count of the rest."""
    every = list(lines)
    rest = len(every) - listed
    return [*every[:listed], f"and {rest} more"] if rest > 0 else every


def refuse(path: Path, what: str, problems: list[str], *, fix: str | None = None) -> None:
    """Raise CheckpointError when there are problems: first ten listed, the rest counted."""
    if problems:
        raise CheckpointError(
            f"{path} holds {what}",
            tried=shorten(problems),
            fix=fix or "download or convert the file again",
        )


def unreadable(path: Path, reason: object, *, fix: str = "download it again; the copy may be incomplete") -> CheckpointError:
    """The CheckpointError for a file that cannot be read as weights; the reason is cut to one line."""
    lines = str(reason).strip().splitlines()
    return CheckpointError(f"cannot read weights from {path}: {lines[0][:300] if lines else type(reason).__name__}", fix=fix)
