"""Attention over several devices gives what one gives."""

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


def test_four_devices_agree_with_one():
    flags = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "PYTHONPATH": os.pathsep.join(sys.path)}
    answer = subprocess.run([sys.executable, "-c", _FOUR], capture_output=True, text=True, env=flags, timeout=600, check=False)
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
