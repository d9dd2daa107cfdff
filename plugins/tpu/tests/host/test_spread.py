"""Attention and batches over several devices give what one gives."""

import os
import subprocess
import sys

import pytest

from turbort.errors import InputError

_FOUR = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh
from turbort_tpu.kernels.attention import attention
from turbort_tpu.kernels.ulysses import AXIS, spread_attention
mesh = Mesh(np.array(jax.devices()[:4]), (AXIS,))
draw = np.random.default_rng(0).standard_normal
q, k, v = (jnp.asarray(draw((1, 136, 4, 128)), jnp.bfloat16) for _ in range(3))
got = jax.jit(lambda q, k, v: spread_attention(mesh, q, k, v, int8=True))(q, k, v)
want = jax.jit(lambda q, k, v: attention(q, k, v, int8=True))(q, k, v)
assert len(got.sharding.device_set) == 4
print(float(jnp.abs(got.astype(jnp.float32) - want.astype(jnp.float32)).max()))
"""


def spread_over_four(program, **variables):
    """Run a program in a process that sees four CPU devices."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment = {**os.environ, **flags, **variables}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=600)


def test_four_devices_agree_with_one():
    answer = spread_over_four(_FOUR)
    assert answer.returncode == 0, answer.stderr[-2000:]
    assert float(answer.stdout.split()[-1]) < 1e-2


def test_chips_must_divide_the_heads():
    import jax
    import jax.numpy as jnp
    from turbort_tpu.kernels.ulysses import spread_attention

    class Mesh:
        shape = {"chips": 8}  # noqa: RUF012

    x = jax.ShapeDtypeStruct((1, 64, 12, 128), jnp.bfloat16)
    with pytest.raises(InputError, match="12 heads"):
        spread_attention(Mesh(), x, x, x, int8=True)


_BATCH = """
import torch
from tests.step_models import bound, error, inputs, tiny, weights
from turbort.registry import Registry
spec, registry = tiny(None), Registry()
model, _ = bound(spec, "tpu", registry, weights(spec))
x, t, text = inputs(spec, batch=4)
t = torch.tensor([100.0, 500.0, 500.0, 900.0])
with torch.inference_mode():
    context = model.encode_text(text)
    step = registry.backend("tpu").compile_step(model, registry.devices("tpu")[0])
    print(len(next(iter([step(x, t, context)]))), error(step(x, t, context), model(x, t, context)))
    program = next(iter(step._programs.values()))
    assert len(program.placed(x).sharding.device_set) == 4
    assert "all-to-all" not in program.run.as_text() and "all-gather" not in program.run.as_text()
"""


def test_a_batch_over_four_devices_gives_what_one_gives():
    answer = spread_over_four(_BATCH, TURBORT_TPU_CHIPS="4")
    assert answer.returncode == 0, answer.stderr[-2000:]
    count, difference = answer.stdout.split()[-2:]
    assert int(count) == 4
    assert float(difference) < 1e-3


def test_chips_must_divide_the_batch():
    from turbort_tpu.jax_executor.spread import Spread

    with pytest.raises(InputError, match="2 chips do not divide a batch of 3") as caught:
        Spread.over([None, None], 3)
    assert "multiple of 2" in caught.value.fix


def test_chips_that_are_not_there(monkeypatch):
    from turbort_tpu.jax_executor.spread import CHIPS, asked

    for text in ("0", "99", "two"):
        monkeypatch.setenv(CHIPS, text)
        with pytest.raises(InputError, match=text):
            asked()
