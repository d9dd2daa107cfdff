"""Errors a user can act on: what was given, what is allowed, what was tried, and how to fix it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class TurbortError(Exception):
    """Base of every error that turbort raises on purpose; `str()` is fit to show to a user.

    `exit_code` is what the command line ends with: 2 for bad input, 3 for a device that is not there, 1 otherwise.
    """

    exit_code = 1

    def __init__(self, message: str, *, fix: str | None = None, tried: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.tried = tuple(tried)

    def __str__(self) -> str:
        lines = [self.message, *(f"  - {line}" for line in self.tried)]
        if self.fix:
            lines.append(f"fix: {self.fix}")
        return "\n".join(lines)


class InputError(TurbortError):
    """The user gave something turbort cannot use: a flag, a profile, a prompt, a file."""

    exit_code = 2


class UnavailableError(TurbortError):
    """The backend or device that was asked for cannot run on this machine."""

    exit_code = 3


class NoKernelError(TurbortError):
    """No kernel accepted a call; `tried` holds every candidate's refusal."""


class PlanError(TurbortError):
    """A saved plan does not fit the model, the profile or the installed backends."""

    exit_code = 2


class CheckpointError(InputError):
    """A weights file is unreadable, unsafe, or does not hold the tensors the model needs."""


def nearest(name: str, allowed: Iterable[str], count: int = 3) -> list[str]:
    """The allowed names closest in spelling to `name`, best first (empty when nothing is close)."""
    return difflib.get_close_matches(name, list(allowed), n=count, cutoff=0.5)


def unknown(kind: str, name: str, allowed: Iterable[str], *, fix: str | None = None) -> InputError:
    """An InputError for a name that does not exist: nearest names first, then the whole list.

    `kind` is one noun (`model`), which may say of what (`sampler of tiny`).
    """
    names = sorted(allowed)
    close = nearest(name, names)
    hint = f"did you mean {' or '.join(repr(n) for n in close)}?" if close else None
    noun, of, owner = kind.partition(" of ")
    listing = f"known {noun}s{of}{owner}: {', '.join(names) if names else '(none)'}"
    fix = fix or (f"give {' or '.join(names[:2]) if len(names) < 3 else 'one of these names'}" if names else None)
    return InputError(f"unknown {noun} {name!r}{of}{owner}", tried=[line for line in (hint, listing) if line], fix=fix)
