"""Print the runtime dependencies that pyproject.toml declares, one a line.

usage: python tools/dependencies.py [--without NAME ...]

For environments that bring a package of their own, such as an older torch, and still need the rest.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import tomllib


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--without", nargs="*", default=[], metavar="NAME")
    left_out = set(parser.parse_args().without)
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    for line in project["dependencies"]:
        if re.split(r"[\s<>=!~;\[]", line, maxsplit=1)[0] not in left_out:
            print(line)


if __name__ == "__main__":
    main()
