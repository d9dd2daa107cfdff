"""torch-npu's ProcessGroupHCCL between two processes, over a stand-in of HCCL that moves real bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RANK = """
import json, os, sys
rank = int(sys.argv[1])
from turbort_ascend import emulated
emulated.start("Ascend910B3", arithmetic=False)
import torch, torch.distributed as dist
torch.npu.set_device(rank)
dist.init_process_group("hccl", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
here = torch.device("npu", rank)

def values(count, dtype=torch.float32):
    return torch.arange(count).add(100 * rank).to(dtype).to(here)

def seen(x):
    torch.npu.synchronize()
    return x.cpu().tolist()

found = {"backend": dist.get_backend(), "device": torch.npu.current_device()}
got = torch.empty(4, device=here)
dist.all_to_all_single(got, values(4))
found["all_to_all"] = seen(got)
uneven = torch.empty(2 + 2 * rank, device=here)
dist.all_to_all_single(uneven, values(3), [1 + rank, 1 + rank], [1, 2])
found["uneven"] = seen(uneven)
total = values(3, torch.bfloat16)
dist.all_reduce(total)
found["all_reduce"] = seen(total)
every = torch.empty(4, dtype=torch.int8, device=here)
dist.all_gather_into_tensor(every, torch.full((2,), rank, dtype=torch.int8).to(here))
found["all_gather"] = seen(every)
root = values(2)
dist.broadcast(root, src=1)
found["broadcast"] = seen(root)
part = torch.empty(2, device=here)
dist.reduce_scatter_tensor(part, values(4), op=dist.ReduceOp.MAX)
found["reduce_scatter"] = seen(part)
dist.barrier()
if rank == 0:  # the other one does not come to this
    os.environ["FAKE_HCCL_TIMEOUT"] = "1"
    try:
        dist.all_reduce(values(1))
        torch.npu.synchronize()
    except RuntimeError as error:
        found["alone"] = str(error)
print(json.dumps(found), flush=True)
os._exit(0)
"""


def ranks(code: str, folder: Path) -> list[subprocess.CompletedProcess[str]]:
    """Both ranks of a group, each a process on an NPU of its own."""
    settings = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "FAKE_ACL_DEVICES": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), str(folder / "meet")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=settings,
        )
        for rank in range(2)
    ]  # fmt: skip
    ended = [process.communicate(timeout=200) for process in started]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *texts)
        for process, texts in zip(started, ended, strict=True)
    ]


@pytest.fixture(scope="module")
def seen(torch: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    answers = ranks(RANK, tmp_path_factory.mktemp("hccl"))
    assert [answer.returncode for answer in answers] == [0, 0], answers[0].stderr[-1500:] + answers[1].stderr[-1500:]
    return [json.loads(answer.stdout.splitlines()[-1]) for answer in answers]


def test_each_rank_has_an_npu_of_its_own(seen: list[dict[str, Any]]) -> None:
    assert [(found["backend"], found["device"]) for found in seen] == [("hccl", 0), ("hccl", 1)]


@pytest.mark.parametrize(
    ("collective", "wanted"),
    [
        ("all_to_all", ([0, 1, 100, 101], [2, 3, 102, 103])),
        ("uneven", ([0, 100], [1, 2, 101, 102])),
        ("all_reduce", ([100, 102, 104],) * 2),
        ("all_gather", ([0, 0, 1, 1],) * 2),
        ("broadcast", ([100, 101],) * 2),
        ("reduce_scatter", ([100, 101], [102, 103])),
    ],
)
def test_collectives_move_what_they_say(seen: list[dict[str, Any]], collective: str, wanted: Any) -> None:
    assert tuple(found[collective] for found in seen) == tuple(wanted)


def test_a_rank_that_never_comes_is_an_error(seen: list[dict[str, Any]]) -> None:
    assert "HcclAllreduce" in seen[0]["alone"]
