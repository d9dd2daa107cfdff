"""Conversion: a checkpoint in any dialect that turbort reads, written in one that it writes, one weight at a time."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from turbort.checkpoints.checkpoint import Checkpoint
from turbort.checkpoints.dialect import Entry
from turbort.checkpoints.layouts import Layout, layout
from turbort.checkpoints.roles import may_quantise, role_of
from turbort.checkpoints.safetensors_file import read_safetensors
from turbort.checkpoints.safetensors_writer import SafetensorsWriter, size_of
from turbort.checkpoints.source import Header
from turbort.errors import InputError
from turbort.io.atomic import Sink, atomic_text, resolve_target, temporary_beside, write_error
from turbort.quant.qtensor import QTensor
from turbort.quant.schemes import quantize

MANIFEST = 1
SUFFIXES = (".safetensors", ".pth")
CHUNK = 8 * 2**20
ROWS = 128
PART, PART_ON_DEVICE = 1 << 17, 1 << 27
"""Elements that are quantised at once: what a core's own cache holds in float32, and half a GiB on an accelerator."""


@dataclass(frozen=True)
class Layer:
    """One quantised weight: `nmse` = sum((q - w)^2) / sum(w^2), `worst` = max |q - w|, both against the values read.

    `kept` says that the file's own codes were taken over bit for bit, so that no error was added.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    nmse: float
    worst: float
    kept: bool


@dataclass(frozen=True)
class Written:
    """What `convert` made: the file, its manifest, and a row per quantised weight."""

    path: Path
    manifest: Path
    sha256: str
    bytes: int
    layers: tuple[Layer, ...]


def announced(entries: Mapping[str, Entry], form: Layout) -> dict[str, Header]:
    """Everything that the converted file holds, by stored name; values are not read."""
    headers: dict[str, Header] = {}
    for name, entry in entries.items():
        if not entry.alias:
            headers.update(form.headers(name, entry.shape, entry.dtype))
    return headers


def convert(
    checkpoint: Checkpoint,
    target: Path,
    precision: str,
    dialect: str = "turbort",
    on_layer: Callable[[Layer, int], None] = lambda layer, total: None,
    device: torch.device | str = "cpu",
) -> Written:
    """Quantise the matrices of the blocks and write everything to `target`, whole or not at all.

    Holds one weight at a time; `device` does the arithmetic. Beside the file goes `<target>.manifest.json` with SHA-256,
    source and the error of every weight. Raises InputError for a pair of precision and dialect that does not exist, a
    target that cannot be written, too little space, or a checkpoint without blocks.
    """
    form, device = layout(dialect, precision), torch.device(device)
    path = _checked_target(target, dialect)
    headers = announced(checkpoint.entries, form)
    total = sum(may_quantise(name, entry.shape) for name, entry in checkpoint.entries.items() if not entry.alias)
    if not total:
        raise InputError(
            f"{checkpoint.path} (dialect {checkpoint.dialect.name}) has no matrices that would be quantised",
            fix="name a transformer or a umT5 encoder",
        )
    if dialect == "turbodiffusion" and checkpoint.dialect.naming.name.startswith("umt5"):
        raise InputError("TurboDiffusion has no form for text encoders", fix="use --dialect turbort")
    _require_space(path, sum(map(size_of, headers.values())) * (1 if path.suffix == SUFFIXES[0] else 2))
    rows: list[Layer] = []

    def fill(writer: SafetensorsWriter) -> None:
        for layer in _stream(checkpoint, form, writer, device):
            rows.append(layer)
            on_layer(layer, total)

    (_write_safetensors if path.suffix == SUFFIXES[0] else _write_pickle)(path, headers, form.metadata, fill)
    digest = sha256(path)
    manifest = path.with_name(path.name + ".manifest.json")
    written = Written(path, manifest, digest, path.stat().st_size, tuple(rows))
    atomic_text(manifest, json.dumps(_manifest(written, checkpoint, form, precision), indent=1) + "\n")
    return written


def _checked_target(target: Path, dialect: str) -> Path:
    if target.suffix not in SUFFIXES:
        raise InputError(f"cannot tell what {target} is to be", fix=f"end its name in {' or '.join(SUFFIXES)}")
    if target.suffix == ".pth" and dialect != "turbodiffusion":
        raise InputError(f"the dialect {dialect} is stored as safetensors", fix=f"write to {target.with_suffix('.safetensors')}")
    return resolve_target(target)


def _require_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise InputError(
            f"{path.parent} has {free / 2**30:.1f} GiB free, this needs {needed / 2**30:.1f} GiB", fix="write to another disk"
        )


def _stream(checkpoint: Checkpoint, form: Layout, writer: SafetensorsWriter, device: torch.device) -> Iterator[Layer]:
    for name, entry in checkpoint.entries.items():
        if entry.alias:
            continue
        value = entry.read()
        if not may_quantise(name, entry.shape):
            plain = value.dequantize() if isinstance(value, QTensor) else value
            header = form.plain(name, entry.shape, entry.dtype)
            writer.write(name, plain.reshape(header.shape).to(header.dtype))
            continue
        q, layer = _quantised(name, value, form.scheme, device)
        for stored, tensor in form.encode(name, q).items():
            writer.write(stored, tensor)
        yield layer


def _quantised(name: str, value: Tensor | QTensor, scheme: str, device: torch.device) -> tuple[QTensor, Layer]:
    """A few rows at a time: every scheme's scales are those of rows or of 128 rows, and float32 copies stay in the cache."""
    if isinstance(value, QTensor) and value.scheme == scheme:
        return value, Layer(name, role_of(name), tuple(value.shape), 0.0, 0.0, True)
    wide = value.dequantize(torch.float32) if isinstance(value, QTensor) else value
    step = max(ROWS, (PART if device.type == "cpu" else PART_ON_DEVICE) // wide.shape[1] // ROWS * ROWS)
    codes, scales, sums = [], [], []
    for rows in torch.split(wide, step):
        part = rows.to(device).to(torch.float32)
        q = quantize(part, scheme)
        gap = q.dequantize(torch.float32).sub_(part)
        sums.append(torch.stack([part.square().sum(), gap.abs().amax(), gap.square_().sum()]))
        codes.append(q.values.cpu())
        scales.append(q.scales.cpu())
    if not sums:
        raise InputError(f"{name} is empty", fix="download the checkpoint again")
    every = torch.stack(sums).cpu()
    if not bool(every.isfinite().all()):
        raise InputError(f"{name} holds values that are not finite", fix="download the checkpoint again")
    power, square = float(every[:, 0].sum()), float(every[:, 2].sum())
    layer = Layer(name, role_of(name), tuple(wide.shape), square / power if power else 0.0, float(every[:, 1].max()), False)
    return QTensor(scheme, torch.cat(codes), torch.cat(scales), value.dtype), layer


Fill = Callable[[SafetensorsWriter], None]


def _write_safetensors(path: Path, headers: Mapping[str, Header], metadata: Mapping[str, str], fill: Fill) -> None:
    with _sink(path) as sink:
        writer = SafetensorsWriter(sink, headers, metadata)
        fill(writer)
        assert not writer.missing


def _write_pickle(path: Path, headers: Mapping[str, Header], metadata: Mapping[str, str], fill: Fill) -> None:
    """Through a mapped safetensors file, because torch.save wants every tensor at once."""
    scratch = temporary_beside(path)
    try:
        _write_safetensors(scratch, headers, metadata, fill)
        source = read_safetensors(scratch)
        with _sink(path) as sink:
            torch.save({name: source.load(name) for name in headers}, sink)  # type: ignore[arg-type]  # a file with write only
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def _sink(path: Path) -> Iterator[Sink]:
    sink = Sink(path)
    try:
        yield sink
        sink.commit()
    except BaseException as error:
        sink.discard()
        if isinstance(error, OSError):
            raise write_error(path, error, sink.written) from error
        raise


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a whole file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def _manifest(written: Written, checkpoint: Checkpoint, form: Layout, precision: str) -> dict[str, Any]:
    return {
        "manifest": MANIFEST,
        "file": written.path.name,
        "bytes": written.bytes,
        "sha256": written.sha256,
        "precision": precision,
        "dialect": form.dialect,
        "scheme": form.scheme,
        "source": {"name": checkpoint.path.name, "dialect": checkpoint.dialect.name, "digest": checkpoint.digest},
        "layers": [asdict(layer) for layer in written.layers],
    }
