"""What the backend reads off torch's allocator, and how a device is brought up, without one."""

from __future__ import annotations

from threading import Event
from typing import Any

import pytest
import torch
from turbort_cuda.backend import Cuda

from turbort.backend import Device, MemoryStats

CARD = Device("cuda", "card", "cuda:1", "sm_90", memory=80 << 30)


def test_tensors_and_what_is_reserved_for_them_come_from_one_question(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {
        "allocated_bytes": {"all": {"current": 5, "peak": 7}, "small_pool": {"current": 1, "peak": 1}},
        "reserved_bytes": {"all": {"current": 11, "peak": 13}},
    }
    asked: list[Any] = []

    def said(device: Any) -> Any:
        asked.append(device)
        return figures

    monkeypatch.setattr(torch.cuda, "memory_stats_as_nested_dict", said)
    assert Cuda().memory(CARD) == MemoryStats(used=5, peak=7, total=80 << 30, reserved=11, reserved_peak=13)
    assert asked == ["cuda:1"]


def test_a_device_that_was_never_used_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "memory_stats_as_nested_dict", lambda device: {})
    assert Cuda().memory(CARD) == MemoryStats(0, 0, 80 << 30, 0, 0)


def test_starting_neither_waits_nor_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = Event(), Event()

    def empty(*size: int, device: str) -> None:
        begun.set()
        go.wait(10)
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch, "empty", empty)
    Cuda().start(CARD)
    assert begun.wait(10)
    go.set()
