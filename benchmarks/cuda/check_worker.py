"""A worker of `check`: runs cases of the conformance suite, or kernels at the workload's shapes, and answers each with a line.

It also times configurations of linears for `tune`, one worker at a time.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

Row = dict[str, Any]


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what kernels and compilers print must not mix with the answers
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    for line in sys.stdin:
        task = json.loads(line)
        for row in WORK[task["kind"]](task["items"]):
            row["poisoned"] = _poisoned()
            answers.write(json.dumps(row) + "\n")
            answers.flush()


def _poisoned() -> bool:
    """Whether this process can use the GPU no more."""
    import torch

    if not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
    except Exception:  # noqa: BLE001 - whatever it is, later calls fail with it too
        return True
    return False


_suite: Any = None


def suite() -> Any:
    """The conformance suite of the CUDA backend."""
    global _suite
    if _suite is None:
        from benchmarks.cuda.workload import registry_here
        from turbort.testing import Suite

        _suite = Suite("cuda", registry_here())
    return _suite


def _cases(items: list[str]) -> Iterator[Row]:
    for name in items:
        started = time.perf_counter()
        try:
            found = suite().run(name).row()
        except BaseException as error:  # noqa: BLE001 - one case must not take the others along
            found = {"outcome": "fail", "check": "suite", "message": f"{type(error).__name__}: {first_line(error)}"}
        found.pop("id", None)
        verdict = {"pass": "ok", "fail": "FAIL", "fixed": "FAIL"}.get(found["outcome"], found["outcome"])
        yield {"name": name, "verdict": verdict, **found, "seconds": round(time.perf_counter() - started, 2)}


def _shapes(items: list[str]) -> Iterator[Row]:
    from benchmarks.cuda.shapes import judged

    yield from judged(set(items))


def _times(items: list[str]) -> Iterator[Row]:
    from benchmarks.cuda.linear_variants import times

    yield from times(items)


WORK = {"case": _cases, "shape": _shapes, "time": _times}


def first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else ""


if __name__ == "__main__":
    main()
