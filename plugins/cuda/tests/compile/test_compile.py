"""Every kernel compiles for every architecture, fits into its shared memory, and uses the matrix instruction meant for it."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="triton is not installed; `pip install triton` compiles without a GPU")

import triton
from kernels import Launch, launches
from offline import Built, compile_for
from turbort_cuda.arch import ARCHS

GENERATIONS = (80, 86, 89, 90, 100, 120)
RELEASE = tuple(int(part) for part in triton.__version__.split(".")[:2])


def _build(launch: Launch, capability: int) -> Built:
    return compile_for(
        launch.kernel, capability, launch.arguments, launch.constants, num_warps=launch.warps, num_stages=launch.stages
    )


@pytest.mark.parametrize(
    ("capability", "name"), [(capability, launch.name) for capability in GENERATIONS for launch in launches(capability)]
)
def test_kernel_compiles_for(capability: int, name: str) -> None:
    launch = next(row for row in launches(capability) if row.name == name)
    built = _build(launch, capability)
    arch = ARCHS[capability]
    assert built.shared <= arch.shared, f"{built.shared} bytes of shared memory, {arch.name} has {arch.shared}"
    if launch.mma is None:
        return
    used = built.instructions()
    if arch.mma == "tcgen05":
        # Triton 3.6 gives sm_100 mma.sync for int8; 3.8 the tcgen05 one. Kernels whose left operand is made in registers,
        # or whose tile has 64 rows, may use either.
        assert used, "no matrix instruction at all"
        if name in ("linear-fp8", "linear-int8") and (launch.mma != "s8" or RELEASE >= (3, 8)):
            assert any(found.startswith("tcgen05") for found in used), used
        return
    assert f"{arch.mma} {launch.mma}" in used, f"wanted {arch.mma} {launch.mma}, found {used}"


HOT = (
    "linear-int8",
    "linear-int8-residual",
    "linear-fp8",
    "linear-block128",
    "attention-int8",
    "attention-int8-fp8",
    "sla-int8",
    "sla-int8-fp8",
)


@pytest.mark.parametrize("name", HOT)
def test_hopper_products_stay_asynchronous(name: str) -> None:
    """ptxas serialises every wgmma of a kernel when accumulators are touched while a product is in flight, and says so."""
    built = _build(next(row for row in launches(90) if row.name == name), 90)
    if built.notes is None:
        pytest.skip("this Triton wheel carries no ptxas")
    assert "serialized" not in built.notes, built.notes


@pytest.mark.parametrize("name", ["linear-int8", "attention-int8", "norm-none", "rope"])
def test_amd_for_information(name: str) -> None:
    """gfx942 is not supported; that the kernels compile for it is worth knowing."""
    launch = next(row for row in launches(80) if row.name == name)
    try:
        built = compile_for(launch.kernel, "gfx942", launch.arguments, launch.constants, num_warps=launch.warps, num_stages=1)
    except Exception as error:  # noqa: BLE001 - information only
        pytest.skip(f"does not compile for gfx942: {str(error).splitlines()[-1][:120]}")
    assert "s_endpgm" in built.text
