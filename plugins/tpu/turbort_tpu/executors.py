"""The three ways a torch model meets JAX kernels, as data: what each needs, and which one is asked for.

Nothing here imports torch, jax or a vendor package; `bridge.executor` is the interface they implement.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from types import MappingProxyType

from turbort.errors import unknown

EXECUTOR = "TURBORT_TPU_EXECUTOR"
JAX = "0.10.2"


@dataclass(frozen=True, slots=True)
class Way:
    """One executor.

    Attributes:
        name: what `TURBORT_TPU_EXECUTOR` calls it.
        torch_name: the torch device on which tensors outside a step live.
        packages: modules that must be importable on a TPU; `host` those that suffice to emulate one on the CPU.
        install, install_host: the commands that bring them.
        target: `module:class` of the executor.
        no_host: why it cannot emulate a TPU, or None.
    """

    name: str
    torch_name: str
    packages: tuple[str, ...]
    host: tuple[str, ...]
    install: str
    install_host: str
    target: str
    no_host: str | None = None

    def missing(self, *, emulated: bool) -> list[str]:
        """The modules that cannot be found; finding one does not import it."""
        return [name for name in (self.host if emulated else self.packages) if find_spec(name) is None]


_XLA = 'pip install "torch==2.9.0" "torch_xla[pallas]==2.9.0" "flax<0.12"'

WAYS: Mapping[str, Way] = MappingProxyType(
    {
        way.name: way
        for way in (
            Way(
                "jax", "cpu", ("jax", "libtpu"), ("jax",), f'pip install "jax[tpu]=={JAX}"', f'pip install "jax=={JAX}"',
                "turbort_tpu.jax_executor.executor:JaxExecutor",
            ),
            Way(
                "torch_xla", "xla", ("torch_xla", "jax", "libtpu"), ("torch_xla", "jax"),
                _XLA.replace("[pallas]", "[tpu,pallas]"), _XLA,
                "turbort_tpu.torch_xla_executor:TorchXlaExecutor",
            ),
            Way(
                "torch_tpu", "tpu", ("torch_tpu", "jax", "libtpu"), ("torch_tpu", "jax"),
                'pip install "torch_tpu==0.2.0" jax', 'pip install "torch_tpu==0.2.0" jax',
                "turbort_tpu.torch_tpu_executor:TorchTpuExecutor",
                "TorchTPU ends the process at the first op on a machine without a TPU; jax and torch_xla can emulate one",
            ),
        )
    }
)  # fmt: skip


def chosen() -> Way:
    """The executor that `TURBORT_TPU_EXECUTOR` names; `jax` when it is not set. InputError for an unknown name."""
    name = os.environ.get(EXECUTOR) or "jax"
    if name not in WAYS:
        raise unknown("TPU executor", name, WAYS, fix=f"set {EXECUTOR} to one of them")
    return WAYS[name]
