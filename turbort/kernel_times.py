"""Measured times of kernels: (backend, architecture, op, precision, shape class) to milliseconds. No torch here.

The table is a JSON file, `$TURBORT_CACHE/kernel-times.json` or the same under the user's cache folder:

    {"times": 1, "rows": [{"backend": "cuda", "arch": "sm_90", "op": "linear", "precision": "w8a8",
                           "shape": "32760x1536x8960", "ms": 0.86}]}

A linear's time is that of the product with x already in the precision's own format; the pass that quantises x is the op
`quantize`, its precision the scheme, its shape `rows x columns`. What writes it: `turbort plan --measure`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from turbort.kernel import Call, TensorSpec

log = logging.getLogger("turbort")
TIMES_SCHEMA = 1
Key = tuple[str, str, str, str, str]


def times_file() -> Path:
    """Where measured times are read from and saved to."""
    base = os.environ.get("TURBORT_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (Path(base) if base else home / "turbort") / "kernel-times.json"


def shape_class(call: Call) -> str:
    """The sizes that decide a call's time: rows x inputs x outputs; batch x queries x keys x heads x width (@share of keys)."""
    if call.op == "linear":
        x, weight = call["x"], call["weight"]
        return f"{prod(x.shape[:-1])}x{x.shape[-1]}x{weight.shape[0]}"
    if call.op in ("attention", "sla_attention"):
        q, k = call["q"], call["k"]
        share = f"@{call['topk']:g}" if call["topk"] else ""
        return f"{q.shape[0]}x{q.shape[1]}x{k.shape[1]}x{q.shape[2]}x{q.shape[3]}{share}"
    x = next((value for value in call.args.values() if isinstance(value, TensorSpec)), TensorSpec((), ""))
    return f"{prod(x.shape[:-1])}x{x.shape[-1]}" if x.shape else "scalar"


def quantise_shape(call: Call) -> str:
    """The shape class of the pass that quantises a linear's x."""
    x = call["x"]
    return f"{prod(x.shape[:-1])}x{x.shape[-1]}"


@dataclass(frozen=True)
class KernelTimes:
    """A table of measured milliseconds."""

    rows: Mapping[Key, float]

    def ms(self, backend: str, arch: str, op: str, precision: str, shape: str) -> float | None:
        """The measured time, or None."""
        return self.rows.get((backend, arch, op, precision, shape))

    def joined(self, rows: Mapping[Key, float]) -> KernelTimes:
        """The table with `rows` replacing older ones."""
        return KernelTimes({**self.rows, **rows})

    def dumps(self) -> str:
        names = ("backend", "arch", "op", "precision", "shape")
        rows = [{**dict(zip(names, key, strict=True)), "ms": ms} for key, ms in sorted(self.rows.items())]
        lines = ",\n ".join(json.dumps(row) for row in rows)
        return f'{{"times": {TIMES_SCHEMA}, "rows": [\n {lines}\n]}}\n'

    @staticmethod
    def loads(text: str) -> KernelTimes:
        """Read a table; ValueError for anything else."""
        document = json.loads(text)
        if not isinstance(document, dict) or document.get("times") != TIMES_SCHEMA:
            raise ValueError(f"not a table of kernel times of schema {TIMES_SCHEMA}")
        return KernelTimes(dict(_entries(document["rows"])))

    @staticmethod
    def load(path: Path | None = None) -> KernelTimes:
        """The table of this machine; empty where there is none, or where it cannot be read (which is logged)."""
        file = path or times_file()
        try:
            return KernelTimes.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return KernelTimes({})
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("ignoring %s: %s", file, error)
            return KernelTimes({})


def _entries(rows: Iterable[Mapping[str, object]]) -> Iterable[tuple[Key, float]]:
    for row in rows:
        key = (str(row["backend"]), str(row["arch"]), str(row["op"]), str(row["precision"]), str(row["shape"]))
        ms = float(str(row["ms"]))
        if not 0 < ms < 1e9:
            raise ValueError(f"{ms} ms for {key} is not a time")
        yield key, ms
