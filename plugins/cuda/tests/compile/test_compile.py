"""Every kernel compiles for every architecture, fits into its shared memory, and uses the matrix instruction meant for it."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("triton", reason="triton is not installed; `pip install triton` compiles without a GPU")

from turbort_cuda.launches import launches
from turbort_cuda.offline import GENERATIONS, build, check_targets, compile_for, fault

from turbort.errors import InputError


@pytest.mark.parametrize(
    ("capability", "name"), [(capability, launch.name) for capability in GENERATIONS for launch in launches(capability)]
)
def test_kernel_compiles_for(capability: int, name: str) -> None:
    launch = next(row for row in launches(capability) if row.name == name)
    assert fault(launch, capability, build(launch, capability)) is None


def test_an_architecture_that_nobody_knows_is_named() -> None:
    with pytest.raises(InputError, match="sm_77"):
        list(check_targets(["sm_77"]))


HOPPER_LINEARS = tuple(launch.name for launch in launches(90) if launch.name.startswith("linear-gluon"))
HOT = (
    "linear-int8",
    "linear-int8-residual",
    "linear-fp8",
    "linear-block128",
    *HOPPER_LINEARS,
    "attention-int8",
    "attention-int8-fp8",
    "sla-int8",
    "sla-int8-fp8",
    "attention-gluon-int8",
    "attention-gluon-int8-fp8",
    "sla-gluon-int8",
    "sla-gluon-int8-fp8",
    "sla-gluon-early-int8",
    "sla-gluon-early-int8-fp8",
    "conv3d-96-96",
    "conv3d-192-192",
    "conv3d-384-384",
    "conv3d-96-3",
)


@pytest.mark.parametrize("name", HOT)
def test_hopper_products_stay_asynchronous(name: str) -> None:
    """ptxas serialises every wgmma of a kernel when accumulators are touched while a product is in flight, and says so."""
    built = build(next(row for row in launches(90) if row.name == name), 90)
    if built.notes is None:
        pytest.skip("this Triton wheel carries no ptxas")
    assert "serialized" not in built.notes, built.notes


@pytest.mark.parametrize("name", HOPPER_LINEARS)
def test_hopper_linears_divide_the_registers_and_keep_their_sums_in_them(name: str) -> None:
    """232 for each thread that multiplies, 40 for one that loads: together no more than a multiprocessor has."""
    built = build(next(row for row in launches(90) if row.name == name), 90)
    granted = [int(count) for count in re.findall(r"setmaxnreg\.\w+\.sync\.aligned\.u32\s+(\d+)", built.text)]
    assert {232, 40} <= set(granted)
    assert (2 * 232 + 40) * 128 <= 1 << 16
    residual = "residual" in name or name.endswith(("gate", "high", "fp8"))
    assert len(re.findall(r"cp\.async\.bulk\.tensor\.2d\.shared", built.text)) == (
        3 + 2 * (2 if "high" in name else 4) * residual
    )
    if built.stack is None:
        pytest.skip("this Triton wheel carries no cuobjdump")
    assert built.stack == 0


@pytest.mark.parametrize("mode", ["int8", "int8-fp8"])
def test_threads_and_tma_take_turns_in_memory_that_changes_hands(mode: str) -> None:
    """The state comes by TMA into the memory of the keys: after their last product, and after a barrier that all warps passed."""
    text = build(next(row for row in launches(90) if row.name == f"sla-gluon-early-{mode}"), 90).text
    state = text.rindex("cp.async.bulk.tensor")
    assert "bar.sync" in text[text.rindex("wgmma.wait_group", 0, state) : state]
    assert "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8" not in text[state:]


@pytest.mark.parametrize(("inputs", "outputs"), [(96, 96), (192, 192), (384, 384), (96, 3)])
def test_hopper_convolutions_keep_their_sums_in_registers(inputs: int, outputs: int) -> None:
    """Tiles go from memory to shared memory to the tensor cores: by TMA, one product in flight while the next tile comes."""
    built = build(next(row for row in launches(90) if row.name == f"conv3d-{inputs}-{outputs}"), 90)
    assert "cp.async.bulk.tensor.4d" in built.text
    loop = built.text[built.text.index("Inner Loop Header") :]
    waits = re.search(r"wgmma\.wait_group\S*\s+(\d+)", loop)
    assert waits is not None
    assert int(waits[1]) > 0
    if built.stack is None:
        pytest.skip("this Triton wheel carries no cuobjdump")
    assert built.stack == 0


@pytest.mark.parametrize("name", ["linear-int8", "attention-int8", "norm-none", "rope-1536"])
def test_amd_for_information(name: str) -> None:
    """gfx942 is not supported; that the kernels compile for it is worth knowing."""
    launch = next(row for row in launches(80) if row.name == name)
    try:
        built = compile_for(launch.kernel, "gfx942", launch.arguments, launch.constants, num_warps=launch.warps, num_stages=1)
    except Exception as error:  # noqa: BLE001 - information only
        pytest.skip(f"does not compile for gfx942: {str(error).splitlines()[-1][:120]}")
    assert "s_endpgm" in built.text


def test_the_hopper_kernel_leaves_videos_whose_values_touch_to_the_other_one() -> None:
    """A 16-bit tile of values that reaches into the next video would carry its NaN over; e4m3 codes are padded."""
    import torch
    from turbort_cuda.kernels.attention_hopper import suits
    from turbort_cuda.kernels.kv import Prepared

    codes = torch.zeros(1, dtype=torch.int8)
    whole, ragged = (torch.zeros(2, length, 2, 128, dtype=torch.bfloat16) for length in (256, 200))
    assert suits(whole, Prepared(2, 128, codes), 64)
    assert suits(ragged[:1], Prepared(2, 128, codes), 64)
    assert not suits(ragged, Prepared(2, 128, codes), 64)
    assert suits(ragged, Prepared(2, 128, codes, v_codes=codes), 64)
    assert not suits(whole, Prepared(2, 128, codes), 128)


def test_the_hopper_linear_leaves_what_it_cannot_do_to_the_other_kernel() -> None:
    """Wide results, rows that TMA cannot address, and tiles too short for both warpgroups to be under way."""
    import torch
    from turbort_cuda.kernels.epilogue import epilogue
    from turbort_cuda.kernels.linear_hopper import suits
    from turbort_cuda.variants import hopper_linears

    def ask(n: int = 256, k: int = 1536, kind: torch.dtype = torch.bfloat16, **more: torch.Tensor) -> set[bool]:
        end = epilogue((200, k), n, kind, torch.device("cpu"), None, None, more.get("residual"), None)
        x, w = torch.zeros(200, k, dtype=torch.int8), torch.zeros(n, k, dtype=torch.int8)
        return {suits(x, w, end, config) for config in hopper_linears()}

    assert ask() == ask(residual=torch.zeros(1, 200, 256, dtype=torch.bfloat16)) == {True}
    assert ask(residual=torch.zeros(1, 200, 256)) == ask(kind=torch.float32) == {False}
    assert ask(n=252) == ask(k=1528) == ask(k=256) == {False}
    assert ask(residual=torch.zeros(1, 200, 260, dtype=torch.bfloat16)[..., :256]) == {False}


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("int8", [False, True])
def test_hopper_linears_fit_into_shared_memory(residual: bool, int8: bool) -> None:
    from turbort_cuda.kernels.linear_hopper import PART, shape_of
    from turbort_cuda.variants import hopper_linears

    for config in hopper_linears():
        s = shape_of(config, int8=int8, residual=residual)
        assert s.lead < s.stages
        assert s.stages * (2 * s.rows + s.cols) * s.depth + 4 * s.buffers * s.rows * PART < 227 * 1024
        assert s.wide <= (128 if int8 else 256)
        assert not residual or s.buffers * PART == s.cols
