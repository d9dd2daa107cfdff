"""Packs a run's weights and results into pieces of at most 14 MiB, and puts them together again elsewhere.

    python -m recipes.tiny_shapes.transport pack runs/tiny pieces/
    python -m recipes.tiny_shapes.transport unpack pieces/ runs/tiny
"""

from __future__ import annotations

import argparse
import io
import tarfile
from pathlib import Path

PIECE = 14 << 20
KEEP = (".safetensors", ".json", ".jsonl", ".png", ".md")  # checkpoints with optimiser state stay behind


def pack(run: Path, pieces: Path) -> int:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in sorted(run.rglob("*")):
            if path.is_file() and path.suffix in KEEP:
                tar.add(path, str(path.relative_to(run)))
    data = buffer.getvalue()
    pieces.mkdir(parents=True, exist_ok=True)
    count = -(-len(data) // PIECE)
    for i in range(count):
        (pieces / f"run.tar.{i:02}").write_bytes(data[i * PIECE : (i + 1) * PIECE])
    print(f"{len(data) / 1e6:.1f} MB in {count} pieces")
    return count


def unpack(pieces: Path, run: Path) -> None:
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
    a = p.parse_args()
    if a.what == "pack":
        pack(a.source, a.target)
    else:
        unpack(a.source, a.target)


if __name__ == "__main__":
    main()
