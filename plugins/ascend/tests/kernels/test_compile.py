"""The Triton kernels through Huawei's own compiler, chip by chip: accepted with the tiles turbort launches, rejected beyond.

Evidence: the vendor's pipeline up to the closed `hivmc`. Code generation and run time are not covered.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from cases import LAUNCHED, TOO_LARGE
from turbort_ascend.lowering import Compiled, Source, compile_for, missing_compiler, to_linalg

KIB = 1024
ROOM = {
    "Ascend910B3": {"ub": 192 * KIB, "cc": 128 * KIB, "cbuf": 512 * KIB},
    "Ascend910_9391": {"ub": 192 * KIB, "cc": 128 * KIB, "cbuf": 512 * KIB},
    "Ascend950PR_9589": {"ub": 248 * KIB, "cc": 256 * KIB, "cbuf": 512 * KIB},
}
"""On-chip memory as bishengir-compile 1.2.0 prints it for each target (UB, L0C, L1)."""

REVIEWED = Path(__file__).with_name("on_chip.json")


@pytest.fixture(scope="module", autouse=True)
def compiler() -> None:
    reason = missing_compiler()
    if reason:
        pytest.skip(reason)


@cache
def compiled(name: str, chip: str) -> Compiled:
    return compile_for(to_linalg({**LAUNCHED, **TOO_LARGE}[name], chip), chip)


@pytest.mark.parametrize("chip", ROOM)
@pytest.mark.parametrize("name", LAUNCHED)
def test_the_vendors_compiler_takes_what_turbort_launches(name: str, chip: str) -> None:
    """Accepted, within the chip's memory, as reviewed, and with the int8 products on the cube units."""
    found = compiled(name, chip)
    assert found.accepted, found.words[-1500:]
    assert found.memory, "the module names no on-chip memory"
    for space, used in found.memory.items():
        assert used <= ROOM[chip][space], f"{space}: {used} bytes of {ROOM[chip][space]}"
    assert found.memory == json.loads(REVIEWED.read_text(encoding="utf-8"))[name][chip]
    assert "mma_tile_int8_t_to_int32_t" in found.module


@pytest.mark.parametrize("chip", ROOM)
@pytest.mark.parametrize("name", TOO_LARGE)
def test_tiles_beyond_the_chip_are_rejected_for_lack_of_room(name: str, chip: str) -> None:
    found = compiled(name, chip)
    assert not found.accepted
    assert "overflow, requires" in found.words


def test_the_tiles_are_those_the_wrappers_launch() -> None:
    """The constants compiled here are the ones in `kernels/triton_ops.py`."""
    from turbort.ops.attention_int8 import K_ROWS, Q_ROWS
    from turbort.quant.block128 import BLOCK

    def tiles(source: Source) -> tuple[int, ...]:
        return tuple(value for name, value in source.constants.items() if name.startswith("TILE"))

    assert tiles(LAUNCHED["matmul-bf16"]) == (BLOCK,) * 3
    assert tiles(LAUNCHED["attention-bf16"]) == (Q_ROWS, K_ROWS)
    assert tiles(LAUNCHED["sla-bf16"]) == (64, 128)
