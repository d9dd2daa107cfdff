"""Timing on the GPU with CUDA events, and the ceilings of the card that shares are given of."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""The CPU serves rehearsals only."""
FLUSH_BYTES = 256 << 20
"""Written between repetitions, so that no operand is still in the L2 cache."""


@dataclass(frozen=True)
class Timed:
    """Milliseconds over the repetitions: median and the 10th and 90th percentile."""

    ms: float
    low: float
    high: float
    repetitions: int

    def row(self) -> dict[str, float]:
        return asdict(self)


@cache
def _flush() -> torch.Tensor:
    with torch.inference_mode(False):  # the next command of this process may not be in it
        return torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")


def timed(call: Callable[[], Any], *, seconds: float = 0.3, cold: bool = True) -> Timed:
    """Median of single calls, each between two events; about `seconds` of device time after a warm-up."""
    if DEVICE != "cuda":
        return Timed(_seconds(call) * 1e3, 0.0, 0.0, 1)
    for _ in range(3):
        call()
    synchronize()
    probe = _events(call, 1, cold=False)[0]
    count = max(5, min(200, int(seconds * 1000 / max(probe, 1e-3))))
    found = sorted(_events(call, count, cold=cold))
    return Timed(statistics.median(found), found[len(found) // 10], found[-1 - len(found) // 10], count)


def synchronize() -> None:
    """Wait for the device; nothing to do in a rehearsal."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


AHEAD = 400_000
"""Clocks that the device waits for the host, a call: a busy host would otherwise be timed where it is slower than a kernel."""


def _events(call: Callable[[], Any], count: int, *, cold: bool) -> list[float]:
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count)]
    torch.cuda._sleep(AHEAD * count)  # type: ignore[no-untyped-call]
    for start, end in pairs:
        if cold:
            _flush().zero_()
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in pairs]


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


@cache
def ceilings() -> dict[str, float]:
    """Measured on this card: copy bandwidth in TB/s (read + write), bf16 and int8 products in TFLOP/s or TOP/s."""
    if DEVICE != "cuda":
        return {"copy_tb_s": float("nan")}
    source = torch.empty(2 << 30, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    copy = timed(partial(target.copy_, source)).ms
    m, n, k = 32768, 8960, 1536
    a, b = torch.randn(m, k, device="cuda", dtype=torch.bfloat16), torch.randn(n, k, device="cuda", dtype=torch.bfloat16)
    half = timed(lambda: a @ b.t()).ms
    qa, qb = (torch.randint(-127, 128, shape, device="cuda", dtype=torch.int8) for shape in ((m, k), (n, k)))
    whole = timed(lambda: torch._int_mm(qa, qb.t())).ms
    work = 2.0 * m * n * k / 1e9
    return {"copy_tb_s": 2 * (2 << 30) / copy / 1e9, "bf16_tflop_s": work / half, "int_mm_top_s": work / whole}


def nmse(got: torch.Tensor, want: torch.Tensor, part: int = 1 << 24) -> float:
    """sum (got - want)^2 / sum want^2, in float32 sums over parts, so that no float32 copy of the whole is made."""
    if got.shape != want.shape:
        raise ValueError(f"shape {tuple(got.shape)}, the true result has {tuple(want.shape)}")
    error = size = 0.0
    for mine, true in zip(got.flatten().split(part), want.flatten().split(part), strict=True):
        wide = true.float()
        error += float((mine.float() - wide).square().sum())
        size += float(wide.square().sum())
    return error / max(size, 1e-30)
