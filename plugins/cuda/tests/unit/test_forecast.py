"""The memory forecast against what a CUDA plan would allocate at full size: the real code on meta tensors, launches left out."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton")

import turbort_cuda
from turbort_cuda.arch import nearest

from turbort.backend import Device
from turbort.bind import Binder
from turbort.guard.choose import second_of, watch_of
from turbort.guard.monitor import Watch
from turbort.guard.probe import Probes
from turbort.memory import Forecast, forecast
from turbort.memory_beside import sample_bytes
from turbort.memory_ladder import choose
from turbort.memory_sites import text_bytes
from turbort.memory_vae import vae_caches, vae_layouts
from turbort.models.sites import build_dit
from turbort.models.spec import MODELS
from turbort.models.text import _in_parts
from turbort.models.vae import build_vae
from turbort.plan import Plan
from turbort.planner import Target, make_plan
from turbort.profile import load_profile
from turbort.registry import Registry
from turbort.units import format_bytes

META, HALF = torch.device("meta"), torch.bfloat16
H100 = Device("cuda", "H100", "meta", "sm_90", 80 * 2**30, frozenset({"float32", "bfloat16", "float16", "int8", "float8_e4m3fn"}),
              nearest(90).features)  # type: ignore[union-attr]  # fmt: skip


class Live(TorchDispatchMode):
    """Bytes of all storages that are alive, and the most there ever were since `mark`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: dict[int, Any] = {}

    def mark(self) -> int:
        gc.collect()
        self.most = self.now
        return self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor) and id(leaf.untyped_storage()) not in self._seen:
                self._hold(leaf.untyped_storage())
        return made

    def _hold(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()

        def gone(_: Any) -> None:
            self.now -= size
            del self._seen[key]

        self._seen[key] = weakref.ref(storage, gone)
        self.now += size
        self.most = max(self.most, self.now)


def _inner_conv3d(
    x: torch.Tensor, weight: torch.Tensor, bias: object, stride: Sequence[int], padding: Sequence[int]
) -> torch.Tensor:
    """Channels innermost, as cuDNN answers; on meta torch answers with rows, which the next norm would copy."""
    sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, strict=True)
    shape = [x.shape[0], weight.shape[0], *((size + 2 * pad - kernel) // step + 1 for size, kernel, step, pad in sizes)]
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    """Kernels that launch nothing, with torch's fused attention, which on meta would spell out its scores."""
    monkeypatch.setattr("triton.runtime.jit.JITFunction.run", lambda self, *args, **kwargs: None)
    monkeypatch.setattr("turbort_cuda.kernels.kv.multiprocessors", lambda device: 132)
    monkeypatch.setattr("turbort_cuda.kernels.sdpa.attention", lambda q, k, v: torch.empty_like(q))
    monkeypatch.setattr("torch.nn.functional.conv3d", _inner_conv3d)
    with torch.inference_mode(), Live() as counted:
        yield counted


PROFILE, TARGET = load_profile("h100"), Target("cuda", H100)


def planned(model: str) -> tuple[Plan, Forecast, Registry]:
    registry = Registry()
    if "cuda" not in registry.backends:
        registry = Registry(extra=[turbort_cuda])
    plan = make_plan(MODELS[model], PROFILE, registry, target=TARGET)
    return plan, forecast(plan, MODELS[model], PROFILE), registry


def watched(model: str, budget: int | None = None) -> tuple[Forecast, Watch, Plan]:
    """What a session on an H100 would forecast: the residency, and second kernels where there is room for them."""
    plan, _, registry = planned(model)
    memory = choose(plan, MODELS[model], PROFILE, budget)
    watch = watch_of(MODELS[model], PROFILE, plan, registry, TARGET, memory)
    return forecast(plan, MODELS[model], PROFILE, memory.residency, second_of(watch, plan)), watch, plan


def placed(model: torch.nn.Module, stage: str, plan: Plan, registry: Registry) -> torch.nn.Module:
    binder = Binder(model, plan, stage, registry, device=META, dtype=HALF)
    for name, shape in binder.expected().items():
        binder.place(name, torch.empty(shape, device=META, dtype=HALF))
    return model


@pytest.mark.parametrize("promoted", [False, True])
@pytest.mark.parametrize("model", ["wan2.1-t2v-1.3b", "wan2.1-t2v-14b"])
def test_a_step_of_the_transformer(model: str, promoted: bool, live: Live) -> None:
    """With the plan's kernels, and with every second kernel: 14B is widest where torch adds the feed-forward's residual."""
    plan, made, registry = planned(model)
    spec = MODELS[model]
    vae = made.stage("load").weights
    if promoted:
        made, watch, _ = watched(model)
        plan = second_of(watch, plan).plan or plan
    before = live.mark()
    dit = placed(build_dit(spec, PROFILE.attention), "dit", plan, registry)
    weights = live.mark() - before
    if not promoted:
        assert 0.1e9 < vae - weights < 0.16e9  # what is left is the decoder in 16 bits, without its encoder
    context = dit.encode_text(torch.empty(1, 512, 4096, device=META, dtype=HALF))  # type: ignore[operator]
    texts = live.mark() - before - weights
    shape = spec.latent_shape(832, 480, 81)
    dit(torch.empty(1, *shape, device=META, dtype=HALF), torch.empty(1, device=META), context)
    states = 3 * 4 * shape[0] * shape[1] * shape[2] * shape[3]
    step = made.stage("sample").activations - states
    assert step / (live.most - before - weights - texts) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("model", ["wan2.1-t2v-1.3b", "wan2.1-t2v-14b"])
def test_the_monitor_s_samples_are_counted_to_the_byte(model: str) -> None:
    _, watch, plan = watched(model)
    assert watch.switches
    buffers = Probes(watch.groups, META)._buffers
    assert sample_bytes(plan, PROFILE) == sum(buffer.nbytes for _, buffer, _ in buffers) > 0
    silent = PROFILE.model_copy(update={"monitor": PROFILE.monitor.model_copy(update={"on_outlier": "ignore"})})
    assert sample_bytes(plan, silent) == 0


MEASURED = {
    ("wan2.1-t2v-1.3b", None): {"load": 4225157632, "text": 15629489664, "sample": 6030103040, "decode": 8648970752},
    ("wan2.1-t2v-1.3b", 8): {"load": 1664 << 20, "sample": 3165885952, "decode": 4950 << 20},
    ("wan2.1-t2v-14b", None): {"load": 39667790848, "text": 50630507008, "sample": 44101832192, "decode": 43978140160},
    ("wan2.1-t2v-14b", 24): {"sample": 18475376128},
}
"""Peaks of torch's allocator on an H100, 832x480, 81 frames; under budgets those of captured steps and chunks of one frame."""


@pytest.mark.parametrize(("model", "budget"), MEASURED)
def test_what_was_measured_on_an_h100(model: str, budget: int | None) -> None:
    made, watch, plan = watched(model, None if budget is None else budget << 30)
    assert watch.switches is (budget is None)
    if budget is not None:
        made = forecast(plan, MODELS[model], PROFILE, replace(made.residency, eager=False, chunk=1))
    for stage, measured in MEASURED[model, budget].items():
        assert made.stage(stage).allocated / measured == pytest.approx(1.0, abs=0.03), stage


@pytest.mark.parametrize(("model", "budget"), [("wan2.1-t2v-1.3b", 8 << 30), ("wan2.1-t2v-14b", 24 << 30)])
def test_budgets_in_which_captured_steps_ran_out_of_memory_get_steps_that_are_not(model: str, budget: int) -> None:
    """Measured: chunks of two frames ran out beside a captured step, and chunks of one, too."""
    made, _, plan = watched(model, budget)
    assert made.needed <= budget
    assert (made.residency.eager, made.residency.tile, made.residency.offload) == (True, None, False)
    two = forecast(plan, MODELS[model], PROFILE, replace(made.residency, chunk=2, eager=False))
    assert two.needed > budget


def test_steps_stay_captured_where_another_saving_makes_room() -> None:
    """In 12 GiB the text encoder goes first, and what a captured step keeps is far from the budget; in 8 GiB it is not."""
    spec = MODELS["wan2.1-t2v-1.3b"]
    plan, _, _ = planned(spec.name)
    assert choose(plan, spec, PROFILE, 12 << 30).residency.eager is False
    assert choose(plan, spec, PROFILE, 12 << 30).residency.text == "first"
    assert choose(plan, spec, PROFILE, 8 << 30).residency.eager is True


def test_steps_are_launched_one_kernel_at_a_time_before_frames_are_cut_or_blocks_streamed() -> None:
    spec = MODELS["wan2.1-t2v-1.3b"]
    plan, _, _ = planned(spec.name)
    made = choose(plan, spec, PROFILE, 7 << 30)
    assert (made.residency.eager, made.residency.tile, made.residency.offload) == (True, None, False)
    assert "steps not captured" in made.residency.describe(spec)
    captured = forecast(plan, spec, PROFILE, replace(made.residency, eager=False))
    assert captured.needed > 7 << 30
    assert made.stage("decode").captured == 0 < captured.stage("decode").captured
    assert made.stage("sample").kept < captured.stage("sample").kept
    assert made.stage("sample").activations == captured.stage("sample").activations


def test_a_captured_step_and_unusable_memory_count_against_the_device() -> None:
    """1486 MiB in a captured step's pool, and 7662 MiB reserved while a chunk of two frames failed to get 732 more."""
    made, _, plan = watched("wan2.1-t2v-1.3b", 8 << 30)
    made = forecast(plan, MODELS["wan2.1-t2v-1.3b"], PROFILE, replace(made.residency, eager=False, chunk=1))
    stage = made.stage("decode")
    assert stage.captured / (1486 << 20) == pytest.approx(1.0, abs=0.05)
    assert stage.reserved == stage.allocated + stage.captured + stage.fragmented
    assert stage.row()["reserved"] == format_bytes(stage.reserved)
    two = forecast(plan, MODELS["wan2.1-t2v-1.3b"], PROFILE, replace(made.residency, chunk=2)).stage("decode")
    assert two.reserved > 7662 + 732 << 20
    eager = replace(plan, header={**plan.header, "graph": "eager", "backend": "reference"})
    assert forecast(eager, MODELS["wan2.1-t2v-1.3b"], PROFILE).stage("decode").captured == 0
    assert forecast(eager, MODELS["wan2.1-t2v-1.3b"], PROFILE).stage("decode").fragmented == 0


def test_decoding_a_chunk(live: Live) -> None:
    plan, made, registry = planned("wan2.1-t2v-1.3b")
    with META:
        vae = build_vae(MODELS["wan2.1-t2v-1.3b"].vae).requires_grad_(False).eval()
    placed(vae, "vae", plan, registry)
    latents = torch.empty(1, 16, 21, 60, 104, device=META, dtype=HALF)
    chunks = vae.decode_stream(latents, chunk=made.residency.chunk)
    next(chunks)
    before = live.mark()
    stage = made.stage("decode")
    for _ in range(3):
        pixels = next(chunks)[0].float()
        del pixels
    pixels = 3 * 832 * 480 * 4 * made.residency.chunk * 4
    past = sum(frames.nbytes for frames in chunks.gi_frame.f_locals["stream"].frames.values())
    measured = live.most - before + past
    assert (vae_caches(plan) + stage.activations - pixels) / measured == pytest.approx(1.0, abs=0.05)


def test_quantising_the_text_encoder_s_widest_matrix(live: Live) -> None:
    config = MODELS["wan2.1-t2v-1.3b"].text
    before = live.mark()
    packed = _in_parts(torch.empty(config.ffn_dim, config.dim, device=META, dtype=HALF), "int8-channel")
    most = live.most - before - packed.values.nbytes  # its codes count as weights
    assert live.mark() - before == packed.values.nbytes + packed.scales.nbytes
    spare = text_bytes(MODELS["wan2.1-t2v-1.3b"], PROFILE, "int8-channel")
    plain = text_bytes(MODELS["wan2.1-t2v-1.3b"], PROFILE, None)
    assert plain.activations > 1.05 * most  # a prompt takes more than its widest matrix did
    assert spare.activations == plain.activations
    assert (2 + 1) * packed.values.nbytes / most == pytest.approx(1.0, abs=0.05)


def test_layouts_that_convolutions_keep(live: Live) -> None:
    plan, _, registry = planned("wan2.1-t2v-1.3b")
    with META:
        vae = build_vae(MODELS["wan2.1-t2v-1.3b"].vae).requires_grad_(False).eval()
    placed(vae, "vae", plan, registry)
    before = live.mark()
    for _ in vae.decode_stream(torch.empty(1, 16, 3, 60, 104, device=META, dtype=HALF), chunk=1):
        pass
    assert vae_layouts(plan) / (live.mark() - before) == pytest.approx(1.0, abs=0.1)
