"""The memory forecast against what a CUDA plan would allocate at full size: the real code on meta tensors, launches left out."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
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
from turbort.memory import Forecast, forecast
from turbort.models.sites import build_dit
from turbort.models.spec import MODELS
from turbort.models.vae import build_vae
from turbort.plan import Plan
from turbort.planner import Target, make_plan
from turbort.profile import load_profile
from turbort.registry import Registry

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


def planned(model: str) -> tuple[Plan, Forecast, Registry]:
    registry = Registry()
    if "cuda" not in registry.backends:
        registry = Registry(extra=[turbort_cuda])
    profile = load_profile("h100")
    plan = make_plan(MODELS[model], profile, registry, target=Target("cuda", H100))
    return plan, forecast(plan, MODELS[model], profile), registry


def placed(model: torch.nn.Module, stage: str, plan: Plan, registry: Registry) -> torch.nn.Module:
    binder = Binder(model, plan, stage, registry, device=META, dtype=HALF)
    for name, shape in binder.expected().items():
        binder.place(name, torch.empty(shape, device=META, dtype=HALF))
    return model


@pytest.mark.parametrize("model", ["wan2.1-t2v-1.3b", "wan2.1-t2v-14b"])
def test_a_step_of_the_transformer(model: str, live: Live) -> None:
    plan, made, registry = planned(model)
    spec = MODELS[model]
    before = live.mark()
    dit = placed(build_dit(spec, load_profile("h100").attention), "dit", plan, registry)
    weights = live.mark() - before
    stage = made.stage("sample")
    vae = made.stage("load").weights - weights
    assert 0.1e9 < vae < 0.16e9  # what is left of the forecast's weights is the decoder in 16 bits, without its encoder
    context = dit.encode_text(torch.empty(1, 512, 4096, device=META, dtype=HALF))  # type: ignore[operator]
    shape = spec.latent_shape(832, 480, 81)
    dit(torch.empty(1, *shape, device=META, dtype=HALF), torch.empty(1, device=META), context)
    latents = 4 * shape[0] * shape[1] * shape[2] * shape[3]
    # The graph's copies of its inputs and output, and the sampler's tensors, are outside of the step.
    outside = stage.kept // 2 + 4 * latents
    assert (stage.allocated - vae) / (live.most - before + outside) == pytest.approx(1.0, abs=0.05)


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
    own = made.stage("sample").kept // 2  # a captured step's own tensors
    past = sum(frames.nbytes for frames in chunks.gi_frame.f_locals["stream"].frames.values())
    measured = live.most - before + past
    assert (stage.kept - own + stage.activations) / measured == pytest.approx(1.0, abs=0.05)
