"""Files that appear whole or not at all: written under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shlex
import shutil
import tempfile
from pathlib import Path

from turbort.errors import InputError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def temporary_beside(target: Path) -> Path:
    """A hidden name in the folder of `target` that nothing has yet."""
    return target.with_name(f".turbort-{secrets.token_hex(6)}.tmp")


def resolve_target(path: str | Path) -> Path:
    """The file that writing to `path` would create or replace, links followed, after checking that it can be.

    Raises InputError when the folder is missing or not writable, or when something other than a file has the name.
    """
    target = Path(os.path.realpath(Path(path).expanduser()))
    folder = target.parent
    if not folder.is_dir():
        if folder.exists():
            raise InputError(f"cannot write {path}: {folder} is not a folder", fix="choose another folder")
        raise InputError(f"cannot write {path}: the folder {folder} does not exist", fix=f"mkdir -p {shlex.quote(str(folder))}")
    if target.is_dir():
        raise InputError(f"cannot write {path}: it is a folder", fix="give the name of a file, in this folder or another")
    if target.exists() and not target.is_file():
        raise InputError(f"cannot write {path}: it is not a regular file", fix="choose another name")
    try:
        with tempfile.TemporaryFile(dir=folder):  # has no name, so that nothing can be left behind
            pass
    except OSError as error:
        raise write_error(path, error) from error
    return target


def write_error(path: str | Path, error: OSError, written: int = 0) -> InputError:
    """The InputError for a failed write: a full disk, a read-only folder, or whatever the system said."""
    if error.errno in FULL:
        done = f" after {written / 2**20:.1f} MiB" if written else ""
        return InputError(
            f"the disk is full: cannot write {path}{done} ({os.strerror(error.errno or 0)}); nothing was left behind",
            fix="free some space or write to another disk, then run again",
        )
    reason = os.strerror(error.errno) if error.errno else str(error)
    return InputError(f"cannot write {path}: {reason}", fix="choose a folder that you may write to")


class Sink:
    """A file being written under a temporary name; `commit` gives it its own, `discard` leaves no trace.

    Writing is unbuffered, so a full disk is noticed by the call that fills it. The first failure is kept in `error`,
    because an encoder that writes through a callback may swallow it; `check` raises it again.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.written = 0
        self.error: BaseException | None = None
        self._temporary = temporary_beside(target)
        self._file = self._temporary.open("xb", buffering=0)

    def write(self, data: bytes | memoryview) -> int:
        """Write all of `data`; returns its length in bytes."""
        if self.error is not None:
            raise OSError(errno.EIO, "an earlier write failed")
        view = memoryview(data).cast("B")
        try:
            left = view
            while left:
                left = left[self._file.write(left) :]
        except BaseException as error:
            self.error = error
            raise
        self.written += len(view)
        return len(view)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move the position of the next write."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Position of the next write in bytes."""
        return self._file.tell()

    def flush(self) -> None:
        """Nothing waits: writing is unbuffered."""

    def check(self) -> None:
        """Raise the failure that an encoder may have swallowed."""
        if self.error is not None:
            raise self.error

    def commit(self) -> None:
        """Flush to the disk and take the target's name, replacing what had it."""
        self.check()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._temporary, self.target)

    def discard(self) -> None:
        """Close and delete; what had the target's name before still has it. Safe to call again."""
        self.error = self.error or OSError(errno.ECANCELED, "the file was discarded")
        with contextlib.suppress(OSError):
            self._file.close()
        self._temporary.unlink(missing_ok=True)


class FolderSink:
    """A folder being filled under a temporary name; `commit` swaps it for the target."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = temporary_beside(target)
        self.path.mkdir()

    def commit(self) -> None:
        """Take the target's name; a folder that had it is moved aside first and deleted last."""
        if not self.target.exists():
            os.rename(self.path, self.target)
            return
        old = temporary_beside(self.target)
        os.rename(self.target, old)
        try:
            os.rename(self.path, self.target)
        except BaseException:
            os.rename(old, self.target)
            raise
        shutil.rmtree(old, ignore_errors=True)

    def discard(self) -> None:
        """Delete everything written so far."""
        shutil.rmtree(self.path, ignore_errors=True)


def atomic_bytes(path: str | Path, data: bytes) -> Path:
    """Write `data` to `path` whole or not at all; returns the path. Raises InputError when it cannot be written."""
    target = resolve_target(path)
    sink: Sink | None = None
    try:
        sink = Sink(target)
        sink.write(data)
        sink.commit()
    except BaseException as error:
        if sink is not None:
            sink.discard()
        if isinstance(error, OSError):
            raise write_error(path, error) from error
        raise
    return target


def atomic_text(path: str | Path, text: str) -> Path:
    """`atomic_bytes` of `text` in UTF-8 with line feeds: reports, plans, tables."""
    return atomic_bytes(path, text.encode("utf-8"))
