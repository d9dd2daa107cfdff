"""torch-npu's own runtime over the emulated driver: evidence level 1 of docs/ascend.md."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
from typing import Any

import pytest

MIB = 1 << 20


def bytes_on(torch: Any, mib: int, device: str = "npu:0") -> Any:
    return torch.empty(mib * MIB, dtype=torch.uint8, device=device)


def driver(device: int = 0) -> dict[str, int]:
    from ascend_host.driver import stats

    return stats(device)


def test_devices_are_found_and_call_themselves_emulated(npu: Any) -> None:
    from turbort_ascend.device import find_devices

    found = find_devices()
    assert isinstance(found, list)
    assert [device.torch_name for device in found] == ["npu:0", "npu:1"]
    assert all("(emulated)" in device.name for device in found)
    assert {"npu_quant_matmul", "npu_block_sparse_attention", "graph"} <= found[0].features
    assert found[0].memory == 64 << 30


def test_values_go_to_the_device_and_back(torch: Any, npu: Any) -> None:
    x = torch.arange(12.0).reshape(3, 4)
    assert torch.equal(x.to("npu").cpu(), x)


def test_the_caching_allocator_keeps_what_is_freed(torch: Any, npu: Any) -> None:
    before = driver()["mallocs"]
    first = bytes_on(torch, 30)
    address = first.data_ptr()
    del first
    again = bytes_on(torch, 30)
    assert again.data_ptr() == address
    assert driver()["mallocs"] == before + 1


def test_backend_memory_follows_allocations(torch: Any, npu: Any) -> None:
    from turbort_ascend.backend import Ascend
    from turbort_ascend.device import find_devices

    backend, device = Ascend(), find_devices()[0]  # type: ignore[index]
    backend.reset_peak(device)
    before = backend.memory(device)
    block = bytes_on(torch, 64)
    during = backend.memory(device)
    del block
    after = backend.memory(device)
    assert during.used - before.used >= 64 * MIB  # type: ignore[operator]
    assert after.used == before.used
    assert after.peak >= during.used  # type: ignore[operator]
    backend.empty_cache(device)
    assert driver()["bytes"] == 0


def test_too_much_is_an_out_of_memory_error_with_figures(torch: Any, npu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ACL_HBM_MB", "512")
    before = driver()["oom"]
    with pytest.raises(torch.OutOfMemoryError, match=r"Tried to allocate 16\.00 GiB .*512\.00 MiB total"):
        bytes_on(torch, 16 << 10)
    assert driver()["oom"] > before


def test_streams_and_events(torch: Any, npu: Any) -> None:
    start, end = npu.Event(enable_timing=True), npu.Event(enable_timing=True)
    side = npu.Stream()
    start.record()
    with npu.stream(side):
        y = torch.randn(64).to("npu", non_blocking=True)
    end.record()
    end.synchronize()
    npu.current_stream().wait_stream(side)
    y.record_stream(npu.current_stream())
    assert start.elapsed_time(end) >= 0
    assert driver()["streams"] >= 2


def test_graphs_are_captured_and_replayed(torch: Any, npu: Any) -> None:
    x = torch.zeros(8, device="npu")
    before = driver()
    graph = npu.NPUGraph()
    with npu.graph(graph):
        y = torch.empty_like(x)
        y.copy_(x)
    graph.replay()
    graph.replay()
    npu.synchronize()
    assert driver()["captures"] == before["captures"] + 1
    assert driver()["replays"] == before["replays"] + 2


def test_two_devices_have_their_own_memory(torch: Any, npu: Any) -> None:
    before = driver(1)["mallocs"]
    block = bytes_on(torch, 30, "npu:1")
    assert driver(1)["mallocs"] == before + 1
    assert driver(0)["bytes"] == 0
    moved = block[:4].to("npu:0")
    assert moved.device.index == 0
    del block, moved
    gc.collect()
    npu.empty_cache()
    assert driver(1)["bytes"] == 0


def test_hccl_groups_are_what_torch_distributed_would_make(torch: Any, npu: Any) -> None:
    assert torch.distributed.is_backend_available("hccl")
    assert torch.distributed.Backend.default_device_backend_map.get("npu") == "hccl"


FRESH = """
import os
os.environ.update({environment!r})
from turbort_ascend import emulated
emulated.start("Ascend910B3", arithmetic=False)
import gc, torch
from ascend_host.driver import stats
"""


def fresh(code: str, **environment: str) -> str:
    """Output of a new process; settings that torch-npu reads once need one."""
    text = FRESH.format(environment=environment) + textwrap.dedent(code)
    answer = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, check=False, timeout=200, env=_environment()
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    return answer.stdout


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def test_expandable_segments_map_and_unmap_virtual_memory(torch: Any) -> None:
    out = fresh(
        """
        blocks = [torch.empty(7 << 20, dtype=torch.uint8, device="npu") for _ in range(10)]
        grown = stats()
        del blocks
        torch.npu.empty_cache()
        end = stats()
        print(grown["maps"] > 1, grown["mallocs"], end["maps"] == end["unmaps"], end["physical"])
        """,
        PYTORCH_NPU_ALLOC_CONF="expandable_segments:True",
    )
    assert out.split()[-4:] == ["True", "0", "True", "0"]


def test_nothing_leaks_when_everything_is_let_go(torch: Any) -> None:
    out = fresh(
        """
        from turbort_ascend.device import find_devices
        from turbort_ascend.pool import AclPool
        for _ in range(3):
            with AclPool(find_devices()[0]):
                x = [torch.empty(n << 20, dtype=torch.uint8, device="npu") for n in (1, 30, 70)]
            del x
            gc.collect()
        torch.npu.empty_cache()
        end = stats()
        print(end["mallocs"] == end["frees"], end["bytes"], end["bad_frees"])
        """
    )
    assert out.split()[-3:] == ["True", "0", "0"]


def test_the_allocator_swap_that_turbort_avoids_still_kills_the_process(torch: Any) -> None:
    """Why the pool hangs on a MemPool: should this ever end well, torch-npu was repaired and docs/ascend.md is out of date."""
    code = FRESH.format(environment={}) + textwrap.dedent(
        """
        from turbort_ascend.pool import pool_library
        a = torch.npu.memory.NPUPluggableAllocator(str(pool_library()), "tb_malloc", "tb_free")
        torch.npu.memory.change_current_allocator(a)
        x = torch.empty(1 << 20, device="npu")
        torch.npu.memory_allocated()
        """
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=200, env=_environment()
    )
    assert answer.returncode != 0
