"""Let a CUDA build of torch be imported where none of CUDA's libraries are: stand-ins that answer "no device".

usage: VENV/bin/python cuda_stubs.py

torch_xla 2.9 needs torch 2.9, and Linux has that only as a CUDA build with 3 GB of further packages. Every library that torch's
own ones ask for and that is not there is written beside them, with the functions that nothing else defines, under the
versions that the loader insists on. Each function returns 100, cudaErrorNoDevice, so that `torch.cuda.is_available()` is False.
For tests on machines without a GPU only.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

SYSTEM = re.compile(r"lib(c|m|dl|pthread|rt|util|stdc\+\+|gcc_s)\.so|ld-linux")
NO_DEVICE = 100
TEXTS = ("ErrorString", "ErrorName")


def readelf(option: str, file: Path) -> list[str]:
    return subprocess.run(["readelf", "-W", option, str(file)], capture_output=True, text=True, check=True).stdout.splitlines()


def needed(file: Path) -> set[str]:
    """Names of the libraries that `file` asks the loader for."""
    found = (re.search(r"\(NEEDED\).*\[(.+)\]", line) for line in readelf("-d", file))
    return {match[1] for match in found if match and not SYSTEM.search(match[1])}


def versions(file: Path) -> dict[str, str]:
    """Library by version name, for every version that `file` asks for."""
    found, library = {}, ""
    for line in readelf("-V", file):
        if match := re.search(r"File: (\S+)", line):
            library = match[1]
        elif match := re.search(r"Name: (\S+)\s+Flags", line):
            found[match[1]] = library
    return found


def symbols(file: Path) -> Iterator[tuple[str, str, bool, bool, bool]]:
    """Per dynamic symbol: name, version, whether `file` defines it, whether it is data, whether it may stay missing."""
    for line in readelf("--dyn-syms", file):
        cells = line.split()
        if len(cells) < 8 or not cells[0].rstrip(":").isdecimal():
            continue
        name, _, version = cells[7].partition("@")
        version = version.lstrip("@")
        of_system = version.startswith(("GLIBC", "CXXABI", "GCC_")) or name.startswith(("Py", "_Py"))
        yield name, version, cells[6] != "UND", cells[3] == "OBJECT", cells[4] == "WEAK" or of_system


def body(name: str, data: bool) -> str:
    """C for one stand-in. Libraries register their kernels when they are loaded, which must succeed."""
    if data:
        return f"char {name}[64];"
    if name.endswith(TEXTS):
        return f'const char *{name}(void) {{ return "no CUDA library here"; }}'
    answer = 0 if name.startswith("__cuda") else NO_DEVICE
    return f"long {name}(void) {{ return {answer}; }}"


def build(folder: Path, name: str, wanted: dict[str, tuple[str, bool]], versions: set[str]) -> None:
    """Write library `name` with stand-ins for `wanted`: (version, is data) by symbol."""
    # -fno-builtin: some names are ones for which the compiler expects another signature.
    options = ["-shared", "-fPIC", "-O0", "-w", "-fno-builtin", f"-Wl,-soname,{name}"]
    script, nodes = folder / f".{name}.map", ""
    if versions:
        for version in sorted(versions):
            own = "".join(f"{symbol}; " for symbol, (mine, _) in wanted.items() if mine == version)
            nodes += f"{version} {{ {'global: ' if own else ''}{own}}};\n"
        script.write_text(nodes)
        options.append(f"-Wl,--version-script={script}")
    source = "\n".join(body(symbol, data) for symbol, (_, data) in sorted(wanted.items()))
    subprocess.run(["cc", *options, "-x", "c", "-", "-o", str(folder / name)], input=source, text=True, check=True)
    script.unlink(missing_ok=True)


def main() -> None:
    folder = Path(sysconfig.get_paths()["platlib"]) / "torch"
    libraries = folder / "lib"
    present = {file.name for file in libraries.iterdir()}
    objects = [file for file in (*libraries.glob("*.so*"), *folder.glob("_C.*.so")) if file.is_file()]
    missing = sorted({name for file in objects for name in needed(file)} - present)
    if not missing:
        print("nothing is missing")
        return
    owner = {version: library for file in objects for version, library in versions(file).items() if library in missing}
    defined: set[str] = set()
    wanted: dict[str, tuple[str, bool]] = {}
    for file in objects:
        for name, version, here, data, optional in symbols(file):
            if here:
                defined.add(name)
            elif not optional and name.isidentifier():
                wanted[name] = version, data or wanted.get(name, ("", False))[1]
    for library in missing:
        own = {
            name: (version, data)
            for name, (version, data) in wanted.items()
            if name not in defined and owner.get(version, missing[0]) == library
        }
        build(libraries, library, own, {version for version, where in owner.items() if where == library})
    print(f"stand-ins for {', '.join(missing)}")


if __name__ == "__main__":
    sys.exit(main())
