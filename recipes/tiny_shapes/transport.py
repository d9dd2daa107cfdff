"""Packs a run's weights and results into pieces of at most 14 MiB, and puts them together again elsewhere.

    python -m recipes.tiny_shapes.transport pack runs/tiny pieces/ [--skip 'export/*' ...]
    python -m recipes.tiny_shapes.transport unpack pieces/ runs/tiny
"""

from __future__ import annotations

import argparse
import io
import tarfile
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

PIECE = 14 << 20
# Checkpoints with optimiser state stay behind.
KEEP = (".safetensors", ".json", ".jsonl", ".png", ".md", ".yaml", ".log", "LICENSE")


def pack(run: Path, pieces: Path, skip: Sequence[str] = ()) -> int:
    """Write `run.tar.00`, ... ; `skip` are globs of paths inside the run. Returns the number of pieces."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in sorted(run.rglob("*")):
            name = path.relative_to(run).as_posix()
            if path.is_file() and path.name.endswith(KEEP) and not any(fnmatchcase(name, glob) for glob in skip):
                tar.add(path, name)
    data = buffer.getvalue()
    pieces.mkdir(parents=True, exist_ok=True)
    count = -(-len(data) // PIECE)
    for i in range(count):
        (pieces / f"run.tar.{i:02}").write_bytes(data[i * PIECE : (i + 1) * PIECE])
    print(f"{len(data) / 1e6:.1f} MB in {count} pieces")
    return count


def unpack(pieces: Path, run: Path) -> None:
    """Put the pieces in `pieces` together in `run`."""
    data = b"".join(p.read_bytes() for p in sorted(pieces.glob("run.tar.*")))
    run.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        tar.extractall(run, filter="data")
        print(f"{len(tar.getnames())} files")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("pack", "unpack"))
    p.add_argument("source", type=Path)
    p.add_argument("target", type=Path)
    p.add_argument("--skip", nargs="*", default=(), help="pack: globs of paths to leave out")
    a = p.parse_args()
    if a.what == "pack":
        pack(a.source, a.target, a.skip)
    else:
        unpack(a.source, a.target)


if __name__ == "__main__":
    main()
