"""Builds the stand-in libraries from C (gcc, the headers of the torch-npu wheel) and loads them before torch-npu."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from turbort_ascend.build import cache_folder, shared_library

HERE = Path(__file__).resolve().parent
EMPTY = ("libge_runner.so", "libgraph.so", "libacl_tdt_channel.so", "libfmk_parser.so", "libascend_protobuf.so")
QUIET = ("Msprof", "aclAppLog", "aclmdl", "aclopSet")
"""Unimplemented functions that may be called for nothing; every other one prints its name and fails."""

FIELDS = (
    "mallocs", "frees", "oom", "bytes", "peak", "last_policy", "maps", "unmaps", "reservations", "physical", "copies",
    "copied_bytes", "host_bytes", "async_mallocs", "async_frees", "trims", "pools", "streams", "events", "captures",
    "replays", "bad_frees",
)  # fmt: skip


class _Stats(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in FIELDS]


def package() -> Path:
    """Where torch-npu lies, found without importing it."""
    spec = find_spec("torch_npu")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def load() -> None:
    """Load every stand-in into this process; the linker then takes them for what torch-npu needs, by their names."""
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    headers = [package() / "include", HERE]
    own = [HERE / name for name in ("memory.c", "pools.c", "runtime.c", "operators.c")]
    libraries = [
        shared_library("libascendcl.so", [*own, _stubs(own)], include=headers, flags=["-w", "-lpthread"]),
        shared_library("libacl_op_compiler.so", [HERE / "compiler.c"], include=headers, flags=["-w"]),
        shared_library("libhccl.so", [HERE / "hccl.c"], include=[_hccl_types().parent, *headers], flags=["-w", "-lrt"]),
        *(shared_library(name, [_written(f"{name}.c", f"int {name.partition('.')[0]}_is_empty;\n")]) for name in EMPTY),
        shared_library("libopapi.so", [_recorder()], flags=["-w"]),
    ]
    for path in libraries:
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


@cache
def _acl() -> ctypes.CDLL:
    return ctypes.CDLL("libascendcl.so")


def stats(device: int = 0) -> dict[str, int]:
    """The driver's books: calls, bytes, streams, events and graphs of one device."""
    found = _Stats()
    _acl().fake_acl_stats(device, ctypes.byref(found))
    return {name: int(getattr(found, name)) for name in FIELDS}


def _written(name: str, text: str) -> Path:
    """A generated C file in the cache."""
    folder = cache_folder() / "ascend" / f"generated-{version('torch-npu')}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
    return path


def _hccl_types() -> Path:
    """The wheel's hccl_types.h for a C compiler: it sizes arrays by C++ constants, and names a union without `union`."""
    text = (package() / "include/third_party/hccl/inc/hccl/hccl_types.h").read_text(encoding="utf-8")
    text = re.sub(r"const u?int\d+_t (\w+) = +(\w+);", r"enum { \1 = \2 };", text)
    return _written("hccl_types_c.h", text + "\ntypedef union HcclConfigValue HcclConfigValue;\n")


def _stubs(sources: list[Path]) -> Path:
    """One failing function for every C symbol that torch-npu wants and `sources` do not define."""
    written = "".join(source.read_text(encoding="utf-8") for source in sources)
    mine = set(re.findall(r"^(?:\w+ \**)?\w+ \**(acl\w+)\(", written, re.MULTILINE))
    missing = sorted(name for name in _undefined() if name not in mine)
    lines = ["#include <stdio.h>"]
    for name in missing:
        loud = "" if name.startswith(QUIET) else f'fprintf(stderr, "emulated driver: {name} is not implemented\\n"); '
        lines.append(f"int {name}(void) {{ {loud}return {0 if not loud else 507899}; }}")
    return _written("stubs.c", "\n".join(lines) + "\n")


@cache
def _undefined() -> frozenset[str]:
    """Plain C symbols that torch-npu's libraries leave to CANN."""
    kept = _written_list("undefined.txt", _find_undefined)
    return frozenset(kept)


def _find_undefined() -> list[str]:
    found: set[str] = set()
    for library in (*package().glob("_C*.so"), *(package() / "lib").glob("*.so")):
        text = subprocess.run(["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True).stdout
        found |= {line.split()[-1].split("@")[0] for line in text.splitlines() if line.strip()}
    return sorted(name for name in found if name.startswith(("acl", "rt", "Msprof", "Hccl")))


def _recorder() -> Path:
    """recorder.c plus one function for every aclnn name in libtorch_npu.so."""
    names = _written_list("aclnn.txt", _find_aclnn)
    end = "GetWorkspaceSize"
    lines = [
        f'int {name}{end}(void) {{ return record("{name}", {len(name)}); }}\nint {name}(void) {{ return 0; }}' for name in names
    ]
    return _written("recorder.c", (HERE / "recorder.c").read_text(encoding="utf-8") + "\n".join(lines) + "\n")


def _find_aclnn() -> list[str]:
    data = (package() / "lib" / "libtorch_npu.so").read_bytes()
    names = {name.decode() for name in re.findall(rb"aclnn[A-Z][A-Za-z0-9]{2,80}(?=\x00)", data)}
    return sorted({name.removesuffix("GetWorkspaceSize") for name in names})


def _written_list(name: str, make: object) -> list[str]:
    """A list that takes a second to find, kept in the cache per torch-npu version."""
    path = cache_folder() / "ascend" / f"generated-{version('torch-npu')}" / name
    if not path.is_file():
        assert callable(make)
        _written(name, "\n".join(make()))
    return path.read_text(encoding="utf-8").splitlines()
