"""`pool.c` through torch-npu's real NPUPluggableAllocator and MemPool, over the emulated driver."""

from __future__ import annotations

import gc
from typing import Any

import pytest

MIB = 1 << 20


@pytest.fixture
def device(npu: Any) -> Any:
    from turbort_ascend.device import find_devices

    return find_devices()[0]  # type: ignore[index]


def empty(torch: Any, mib: int) -> Any:
    return torch.empty(mib * MIB, dtype=torch.uint8, device="npu")


def settle(torch: Any) -> None:
    gc.collect()
    torch.npu.synchronize()
    torch.npu.empty_cache()


def change(before: dict[str, int], after: dict[str, int], *names: str) -> list[int]:
    return [after[name] - before[name] for name in names]


@pytest.mark.parametrize("mode", ["malloc", "soma"])
def test_what_is_allocated_inside_comes_from_the_pool_and_goes_back(torch: Any, device: Any, mode: str) -> None:
    from ascend_host.driver import stats
    from turbort_ascend.pool import AclPool

    with AclPool(device, mode) as pool:
        before = pool.stats()
        inside = empty(torch, 30)
        assert change(before, pool.stats(), "requests") == [1]
        assert pool.stats()["live"] - before["live"] >= 30 * MIB
        if mode == "soma":
            assert stats()["async_mallocs"] > 0
        else:
            assert stats()["last_policy"] == 0  # ACL_MEM_MALLOC_HUGE_FIRST
    outside = empty(torch, 5)
    assert change(before, pool.stats(), "requests") == [1]
    del inside, outside
    settle(torch)
    pool.trim()
    assert pool.stats()["live"] == before["live"]
    assert change(before, pool.stats(), "frees") == [1]


def test_tensors_may_outlive_the_pool(torch: Any, device: Any) -> None:
    from turbort_ascend.pool import AclPool

    with AclPool(device) as pool:
        kept = torch.arange(1000, dtype=torch.float32).to("npu")
        live = pool.stats()["live"]
    settle(torch)
    assert torch.equal(kept.cpu(), torch.arange(1000, dtype=torch.float32))
    assert pool.stats()["live"] == live
    del kept
    settle(torch)
    assert pool.stats()["live"] < live


def test_the_cap_is_kept_and_explained(torch: Any, device: Any) -> None:
    from turbort_ascend.pool import AclPool

    with AclPool(device, limit=100 * MIB) as pool:
        before = pool.stats()
        first = empty(torch, 60)
        with pytest.raises(torch.OutOfMemoryError, match="NPU out of memory"):
            empty(torch, 90)
        assert pool.stats()["live"] <= 100 * MIB
        assert pool.stats()["refused"] > before["refused"]
        assert "the pool's cap is reached: NPU 0, 92.0 MiB asked" in pool.message()
        assert "cap 100.0 MiB" in pool.message()
    del first
    settle(torch)


def test_the_devices_end_is_explained(torch: Any, device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from turbort_ascend.pool import AclPool

    monkeypatch.setenv("FAKE_ACL_HBM_MB", "256")
    with AclPool(device, limit=0) as pool, pytest.raises(torch.OutOfMemoryError):
        empty(torch, 1000)
    assert "the device is out of memory: NPU 0" in pool.message()
    assert "AscendCL code 207001" in pool.message()


def test_freed_segments_are_reused_by_the_next_pool_and_trimmed(torch: Any, device: Any) -> None:
    from ascend_host.driver import stats
    from turbort_ascend.pool import AclPool

    with AclPool(device, keep=64 * MIB) as pool:
        before = pool.stats()
        block = empty(torch, 40)
    del block
    settle(torch)
    assert pool.stats()["reserve"] >= 40 * MIB
    mallocs = stats()["mallocs"]
    with AclPool(device, keep=64 * MIB):
        again = empty(torch, 40)
    assert change(before, pool.stats(), "reused") == [1]
    assert stats()["mallocs"] == mallocs
    del again
    settle(torch)
    frees = stats()["frees"]
    pool.trim()
    assert pool.stats()["reserve"] == 0
    assert stats()["frees"] == frees + 1


def test_the_stream_ordered_pool_reuses_without_asking_the_device(torch: Any, device: Any) -> None:
    from ascend_host.driver import stats
    from turbort_ascend.pool import AclPool

    AclPool(device, "soma").trim()
    with AclPool(device, "soma") as pool:
        block = empty(torch, 40)
    del block
    settle(torch)
    before, asked = stats(), pool.stats()
    with AclPool(device, "soma"):
        block = empty(torch, 40)
    assert change(asked, pool.stats(), "requests") == [1]
    assert change(before, stats(), "mallocs") == [0]
    del block
    settle(torch)
    pool.trim()


def test_statistics_of_torch_stay_alive_beside_the_pool(torch: Any, device: Any) -> None:
    from turbort_ascend.pool import AclPool

    with AclPool(device):
        block = empty(torch, 30)
        assert torch.npu.memory_allocated() >= 30 * MIB
        assert torch.npu.memory_reserved() >= 30 * MIB
        assert any(segment["total_size"] >= 30 * MIB for segment in torch.npu.memory_snapshot())
    del block
    settle(torch)


def test_a_pool_that_leaks_is_seen(torch: Any, device: Any) -> None:
    """The leak check of test_runtime has teeth: what is still held shows up in the driver's books."""
    from ascend_host.driver import stats
    from turbort_ascend.pool import AclPool

    settle(torch)
    clean = stats()["bytes"]
    with AclPool(device):
        held = empty(torch, 30)
    settle(torch)
    assert stats()["bytes"] - clean >= 30 * MIB
    del held
    settle(torch)
    assert stats()["bytes"] == clean


@pytest.mark.parametrize(("name", "value"), [("TURBORT_ASCEND_POOL", "arena"), ("TURBORT_ASCEND_POOL_LIMIT", "40GiB")])
def test_settings_that_make_no_sense_are_refused(device: Any, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    from turbort_ascend.pool import AclPool

    from turbort import InputError

    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=value):
        AclPool(device)


def test_a_compiler_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from turbort_ascend import build

    from turbort import UnavailableError

    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    with pytest.raises(UnavailableError, match="no C compiler"):
        build.compiler()


def test_a_graph_captured_inside_keeps_its_memory_to_itself(torch: Any, device: Any) -> None:
    """Replays write to the addresses of the capture: nothing allocated later may lie there, pool or not."""
    from turbort_ascend.pool import AclPool

    with AclPool(device):
        graph = torch.npu.NPUGraph()
        with torch.npu.graph(graph):
            between = empty(torch, 30)
            address = between.data_ptr()
            del between
            result = empty(torch, 40)
        later = [empty(torch, 30) for _ in range(3)]
        assert all(block.data_ptr() != address for block in later)
        assert all(block.data_ptr() != result.data_ptr() for block in later)
    del later, result, graph
    settle(torch)
