"""What `turbort compile` writes for GPUs that are not here, and that a run would find it again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed; `pip install triton` compiles without a GPU")

from triton import knobs
from turbort_cuda import aot

from turbort import artifacts
from turbort.errors import PlanError
from turbort.models.spec import MODELS
from turbort.plan import Plan
from turbort.planner import find_target, make_plan, recorded
from turbort.profile import load_profile
from turbort.registry import Registry

SIZE = (64, 64)
SITES = ("dit/blocks.0.ffn.0.op", "dit/blocks.0.norm1.op", "dit/blocks.0.self_attn.norm_q.op")


def planned(profile: str) -> tuple[Plan, list, Registry]:
    """Three sites of the tiny model: a linear, the norm that hands its input over in int8, and rotary embedding."""
    registry, wanted = Registry(), load_profile(profile)
    target = find_target(wanted, registry, absent=True)
    plan = make_plan(MODELS["tiny"], wanted, registry, target=target, size=SIZE, frames=5)
    sites = recorded(MODELS["tiny"], wanted, size=SIZE, frames=5)
    return Plan(plan.header, tuple(choice for choice in plan if choice.path in SITES)), sites, registry


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan, list, Registry]:
    folder = tmp_path_factory.mktemp("compiled")
    plan, sites, registry = planned("h100")
    facts = aot.compile_plan(plan, sites, registry, folder, ["sm_90", "sm_89"])
    artifacts.write(folder, plan, facts)
    return folder, plan, sites, registry


@pytest.fixture
def shipped() -> Iterator[None]:
    before = knobs.cache.manager_class
    yield
    knobs.cache.manager_class = before
    aot.Shipped.folders = ()


def test_every_kernel_of_the_plan_has_a_cubin_per_architecture(made) -> None:
    folder, _, _, _ = made
    _, manifest = artifacts.load(folder)
    assert manifest.facts["not compiled"] == {}
    found = {(row["kernel"], row["arch"]) for row in manifest.facts["kernels"]}
    names = {"linear8_kernel", "norm_kernel", "rope_kernel"}
    assert {(name, arch) for name in names for arch in ("sm_89", "sm_90")} <= found
    cubins = [file for file in manifest.files if file.path.endswith(".cubin")]
    assert len(cubins) == len(manifest.facts["kernels"])
    assert all((folder / file.path).read_bytes()[:4] == b"\x7fELF" for file in cubins)


def test_a_moved_folder_serves_every_launch(made, tmp_path: Path, shipped: None) -> None:
    """The same launches elsewhere, with an empty cache: all are found, nothing is compiled."""
    folder, plan, sites, registry = made
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    aot.use(moved)
    for capability in (89, 90):  # forget what this process has compiled
        _forget(capability)
    before = aot.Shipped.hits
    facts = aot.compile_plan(plan, sites, registry, tmp_path / "again", ["sm_90"])
    assert aot.Shipped.hits - before == len(facts["kernels"])
    assert not list((tmp_path / "again").rglob("*.cubin"))


def _forget(capability: int) -> None:
    from turbort_cuda.kernels import linear8, norm, quant, rope

    for kernel in (linear8.linear8_kernel, norm.norm_kernel, rope.rope_kernel, quant.rows_kernel):
        kernel.device_caches.pop(f"ahead-of-time sm_{capability}", None)


def test_a_damaged_folder_is_refused_by_file(made, tmp_path: Path) -> None:
    folder, _, _, _ = made
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert artifacts.load(copy)[0].digest == artifacts.load(folder)[0].digest
    victim = next(copy.rglob("*.cubin"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    with pytest.raises(PlanError, match="not as it was compiled") as caught:
        artifacts.load(copy)
    assert victim.name in str(caught.value)
    victim.unlink()
    with pytest.raises(PlanError, match="missing"):
        artifacts.load(copy)
    (copy / "manifest.json").write_text("{}")
    with pytest.raises(PlanError, match="no manifest"):
        artifacts.load(copy)
