"""Stop before pip downloads gigabytes of CUDA packages to a machine that has no use for them.

usage: python tools/torch_wheel.py [--allow-cuda] [-- PIP_ARGUMENTS]

Asks pip what it would install for torch (nothing is installed) and exits 1, with the way out, when that
includes CUDA packages while this machine shows no NVIDIA device.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ADVICE = """\
pip would install torch's CUDA build and {count} NVIDIA packages (several GB), and this machine shows no NVIDIA device.
fix: let pip find the CPU build. PyTorch's "Get started" page gives the address for compute platform CPU; then run
       make demo PIP_ARGS="--extra-index-url ADDRESS"
     or accept the CUDA build:
       make demo ALLOW_CUDA=1"""


def main(arguments: list[str]) -> int:
    own, _, pip_arguments = _split(arguments)
    if "--allow-cuda" in own or Path("/dev/nvidiactl").exists() or find_spec("torch"):
        return 0
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--report", "-", *pip_arguments, "torch"]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        print(answer.stderr.strip(), file=sys.stderr)
        return answer.returncode
    names = [item["metadata"]["name"].lower() for item in json.loads(answer.stdout)["install"]]
    nvidia = [name for name in names if name.startswith("nvidia-")]
    if nvidia:
        print(ADVICE.format(count=len(nvidia)), file=sys.stderr)
        return 1
    return 0


def _split(arguments: list[str]) -> tuple[list[str], str, list[str]]:
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:at], "--", arguments[at + 1 :]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
