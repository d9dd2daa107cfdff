"""The CUDA backend without CUDA: probing, details, the kernel table, plans for cards that are not here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import turbort_cuda
from turbort_cuda.arch import ARCHS, nearest
from turbort_cuda.backend import Cuda
from turbort_cuda.table import kernel_table

from turbort.backend import Device, Unavailable
from turbort.kernel import Call, TensorSpec
from turbort.models.spec import get_model
from turbort.planner import make_plan
from turbort.profile import load_profile
from turbort.registry import Registry


def card(capability: int, name: str = "a card", memory: int = 141 << 30) -> Device:
    arch = ARCHS[capability]
    dtypes = frozenset({"float32", "bfloat16", "float16", "int8"}) | ({"float8_e4m3fn"} if "fp8" in arch.features else set())
    return Device("cuda", name, "cuda:0", arch.name, memory, dtypes, arch.features)


def registry_with(monkeypatch: pytest.MonkeyPatch, device: Device) -> Registry:
    monkeypatch.setattr(Cuda, "probe", lambda self: [device])
    registry = Registry()
    return registry if "cuda" in registry.backends else Registry(extra=[turbort_cuda])


def test_importing_the_package_loads_neither_torch_nor_triton() -> None:
    code = "import sys, turbort_cuda; b = turbort_cuda.Cuda(); list(b.kernels()); print({'torch', 'triton'} & set(sys.modules))"
    path = [entry for entry in sys.path if entry]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}; {code}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_no_cuda_is_a_reason_and_a_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    found = Cuda().probe()
    assert isinstance(found, Unavailable)
    assert "CPU build" in found.reason
    assert found.fix
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    found = Cuda().probe()
    assert isinstance(found, Unavailable)
    assert "driver" in found.reason


def test_a_card_before_ampere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _probe(monkeypatch, major=7, minor=5, name="Tesla T4")
    assert isinstance(found, Unavailable)
    assert "Tesla T4" in found.reason
    assert "8.0" in found.reason


@pytest.mark.parametrize(
    ("major", "minor", "tag", "features"),
    [
        (8, 0, "sm_80", set()),
        (8, 9, "sm_89", {"fp8"}),
        (9, 0, "sm_90", {"fp8", "tma", "wgmma"}),
        (12, 0, "sm_120", {"fp8", "tma"}),
    ],
)
def test_features_follow_the_generation(
    monkeypatch: pytest.MonkeyPatch, major: int, minor: int, tag: str, features: set[str]
) -> None:
    found = _probe(monkeypatch, major=major, minor=minor, name="card")
    assert isinstance(found, list)
    assert found[0].arch == tag
    assert found[0].features & {"fp8", "tma", "wgmma", "tcgen05"} == features
    assert {"int8", "graph"} <= found[0].features
    assert found[0].details["compute capability"] == f"{major}.{minor}"


def _probe(monkeypatch: pytest.MonkeyPatch, *, major: int, minor: int, name: str) -> list[Device] | Unavailable:
    import importlib.util

    import torch

    real = importlib.util.find_spec
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: True if package == "triton" else real(package))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: name)
    properties = SimpleNamespace(major=major, minor=minor, name=name, total_memory=1 << 34, multi_processor_count=10)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    return Cuda().probe()


def test_an_unknown_newer_generation_uses_the_nearest_older_one() -> None:
    assert nearest(75) is None
    assert nearest(110) is ARCHS[103]


def test_kernel_names_are_unique_per_op() -> None:
    rows = [(kernel.op, kernel.name) for kernel in kernel_table()]
    assert len(rows) == len(set(rows))


def test_every_target_exists() -> None:
    """Files and functions named in the table are there, without importing Triton."""
    import ast
    from pathlib import Path

    root = Path(turbort_cuda.__file__).parent.parent
    for kernel in kernel_table():
        for target in filter(None, (kernel.target, kernel.pack)):
            module, _, name = target.partition(":")
            if module.startswith("turbort_cuda"):
                tree = ast.parse((root / Path(*module.split("."))).with_suffix(".py").read_text())
                assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, target


def _refusal(op: str, name: str, precision: str, device: Device, **args: Any) -> str | None:
    kernel = next(row for row in kernel_table() if (row.op, row.name) == (op, name))
    return kernel.refusal(Call(op, "path", "role", args), precision, device)


def test_refusals_name_the_number() -> None:
    head = {name: TensorSpec((1, 100, 4, 96), "bfloat16") for name in "qkv"}
    assert "not 96" in str(_refusal("attention", "triton-int8", "int8", card(90), **head))
    fine = {name: TensorSpec((1, 100, 4, 128), "bfloat16") for name in "qkv"}
    assert _refusal("attention", "triton-int8-fp8", "int8-fp8", card(90), **fine) is None
    assert "fp8" in str(_refusal("attention", "triton-int8-fp8", "int8-fp8", card(86), **fine))
    assert "32x128" in str(_refusal("sla_attention", "triton", "bf16", card(90), block=(32, 128), **fine))
    assert "float32" in str(_refusal("linear", "triton-w4a16", "w4a16", card(90), x=TensorSpec((4, 4), "float32")))


def _plan(monkeypatch: pytest.MonkeyPatch, device: Device, model: str, profile: str) -> Mapping[tuple[str, str], set[str]]:
    size = (128, 128) if model == "tiny" else (832, 480)
    spec, registry = get_model(model), registry_with(monkeypatch, device)
    plan = make_plan(spec, load_profile(profile), registry, size=size, frames=17)
    found: dict[tuple[str, str], set[str]] = {}
    for choice in plan:
        assert not choice.fallback, choice
        found.setdefault((choice.op, choice.role), set()).add(choice.kernel + (f" -> {choice.emit}" if choice.emit else ""))
    return found


def test_plan_for_an_h200(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _plan(monkeypatch, card(90, "NVIDIA H200"), "wan2.1-t2v-1.3b", "h200")
    assert rows["linear", "self.qkv"] == {"cuda/triton-int8"}
    assert rows["sla_attention", "attn.self"] == {"cuda/triton-int8-fp8"}
    assert rows["attention", "attn.cross"] == {"cuda/sdpa"}
    assert rows["norm_modulate", "norm"] == {"cuda/triton -> int8-token"}
    assert rows["gelu_quant", "ffn.gelu"] == {"cuda/triton -> int8-token"}
    # q's and k's; RoPE's sums are those of SLA's blocks.
    assert rows["qk_norm_rope", "norm"] == {"cuda/triton -> sums-64", "cuda/triton -> sums-128"}
    assert rows["causal_conv3d", "vae"] == {"cuda/cudnn", "cuda/triton"}


def test_the_triton_convolution_is_taken_where_data_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from turbort_cuda import configs

    monkeypatch.setattr(configs, "CONV3D_FROM", {"sm_90": {"o96": 1 << 17}})
    rows = _plan(monkeypatch, card(90, "NVIDIA H200"), "wan2.1-t2v-1.3b", "h200")
    assert rows["causal_conv3d", "vae"] == {"cuda/cudnn", "cuda/triton"}

    def refusal(device: Device, outputs: int = 96, width: int = 832, kernel: int = 3) -> str | None:
        x, weight = TensorSpec((1, 96, 4, 480, width), "bfloat16"), TensorSpec((outputs, 96, 3, kernel, kernel), "bfloat16")
        given = {"x": x, "weight": weight, "stride": (1, 1, 1), "padding": (1, kernel // 2, kernel // 2)}
        return _refusal("causal_conv3d", "triton", "bf16", device, **given)

    assert refusal(card(90)) is None
    assert "x has 3840" in str(refusal(card(90), width=8))
    assert "192 outputs" in str(refusal(card(90), outputs=192))
    assert "3x1x1" in str(refusal(card(90), kernel=1))
    assert "sm_86" in str(refusal(card(86)))


def test_plan_for_a_3090(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _plan(monkeypatch, card(86, "NVIDIA GeForce RTX 3090", 24 << 30), "tiny", "rtx3090")
    assert rows["sla_attention", "attn.self"] == {"cuda/triton-int8"}
    assert rows["norm_modulate", "norm"] == {"cuda/triton-no-fp8 -> int8-token"}


def test_only_the_pool_strategy_makes_a_pool() -> None:
    with Cuda().pool(card(90), "native") as nothing:
        assert nothing is None


@pytest.mark.parametrize(
    ("capability", "name", "memory", "profile"),
    [
        (90, "NVIDIA H100 80GB HBM3", 80 << 30, "h100"),
        (90, "NVIDIA H200", 141 << 30, "h200"),
        (86, "NVIDIA GeForce RTX 3090", 24 << 30, "rtx3090"),
        (80, "NVIDIA A100-SXM4-80GB", 80 << 30, "a100"),
    ],
)
def test_a_card_is_used_with_its_own_profile_unasked(
    monkeypatch: pytest.MonkeyPatch, capability: int, name: str, memory: int, profile: str
) -> None:
    from turbort.cli.choose import choose

    monkeypatch.setattr(Cuda, "probe", lambda self: [card(capability, name, memory)])
    found = choose(None, None)
    assert (found.profile.name, found.target.backend, found.target.device.name) == (profile, "cuda", name)
    assert not found.target.rehearsal
