"""Reading what torch-npu asked of the device: aclnn calls with their descriptors."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "FAKE_ACLNN_LOG"


@contextmanager
def recorded() -> Iterator[list[str]]:
    """The aclnn calls issued inside, in order; filled when the context ends."""
    import ctypes

    import torch

    lines: list[str] = []
    before = os.environ.get(VARIABLE)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "calls"
        log.touch()
        os.environ[VARIABLE] = str(log)
        # os.environ reaches C's getenv through putenv, which CPython calls.
        assert ctypes.CDLL(None).getenv
        try:
            yield lines
            torch.npu.synchronize()
        finally:
            if before is None:
                os.environ.pop(VARIABLE, None)
            else:
                os.environ[VARIABLE] = before
            lines += log.read_text(encoding="utf-8").splitlines()
