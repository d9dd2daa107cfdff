"""The `torch_tpu` executor against a stand-in of TorchTPU's interface: its device is the CPU, its compiler torch's eager one.

The stand-in keeps what jax_op asks of a function: an annotated signature, lists of arrays, a fake kernel. What TorchTPU does
with it on a TPU is not tested here.
"""

import inspect
import sys
import types
import typing

import jax
import pytest
import torch
from tests.step_models import bound, error, inputs, tiny, weights
from turbort_tpu import executors, probe, torch_tpu_executor
from turbort_tpu.bridge import executor as bridge
from turbort_tpu.bridge.convert import TORCH_DTYPES, spec_of, to_jax, to_torch
from turbort_tpu.generations import GENERATIONS

from turbort.backend import Unavailable
from turbort.errors import UnavailableError
from turbort.registry import Registry


def jax_op(name, function):
    """As torch.tpu.pallas.jax_op: the schema comes from the annotations, the fake kernel from tracing in JAX."""
    signature = inspect.signature(function, eval_str=True)
    assert [typing.get_args(part.annotation) for part in signature.parameters.values()] == [(jax.Array,)]
    assert typing.get_args(signature.return_annotation) == (jax.Array,)
    compiled = jax.jit(function)

    def run(arrays):
        return [to_torch(array) for array in compiled([to_jax(tensor) for tensor in arrays])]

    made = torch.library.custom_op(name, run, mutates_args=(), schema="(Tensor[] arrays) -> Tensor[]")

    @made.register_fake
    def _(arrays):
        shapes = jax.eval_shape(function, [spec_of(tensor) for tensor in arrays])
        return [torch.empty(out.shape, dtype=TORCH_DTYPES[str(out.dtype)]) for out in shapes]

    return made


@pytest.fixture
def torch_tpu(monkeypatch):
    """TorchTPU as far as the executor knows it, on a machine whose PCI bus shows a TPU."""
    monkeypatch.setitem(sys.modules, "torch_tpu", types.ModuleType("torch_tpu"))
    pallas = types.ModuleType("torch.tpu.pallas")
    pallas.jax_op = jax_op
    monkeypatch.setitem(sys.modules, "torch.tpu", types.ModuleType("torch.tpu"))
    monkeypatch.setitem(sys.modules, "torch.tpu.pallas", pallas)
    monkeypatch.setattr(probe, "present", lambda: True)
    monkeypatch.setenv(executors.EXECUTOR, "torch_tpu")
    monkeypatch.setattr(torch_tpu_executor.TorchTpuExecutor, "backend", "eager")
    monkeypatch.setattr(torch_tpu_executor.TorchTpuExecutor, "mode", "interpret")
    bridge._made.cache_clear()
    yield
    bridge._made.cache_clear()


def test_same_velocity_through_custom_ops(torch_tpu):
    spec, registry = tiny(None), Registry()
    state = weights(spec)
    x, t, text = inputs(spec)
    device = probe.describe(GENERATIONS["v5e"])  # tensors on the CPU; the real one says `tpu`
    with torch.inference_mode():
        reference, _ = bound(spec, "reference", registry, state)
        want = reference(x, t, reference.encode_text(text))
        model, plan = bound(spec, "tpu", registry, state, device)
        assert isinstance(bridge.active(), torch_tpu_executor.TorchTpuExecutor)
        step = registry.backend("tpu").compile_step(model, device)
        got = step(x, t, model.encode_text(text))
    assert not plan.fallbacks
    assert error(got, want) < 1e-3
    assert step.compiled == 1
    assert all(slot.calls == 1 for slot in model.blocks[0].self_attn.q.__dict__.values() if hasattr(slot, "calls"))


def test_without_a_tpu_nothing_of_torch_tpu_is_imported(monkeypatch):
    monkeypatch.setenv(executors.EXECUTOR, "torch_tpu")
    bridge._made.cache_clear()
    with pytest.raises(UnavailableError, match="ends the process"):
        bridge.active()
    found = probe.find()  # asked to emulate a v5e
    assert isinstance(found, Unavailable)
    assert "ends the process" in found.reason
    assert "torch_tpu" not in sys.modules
