"""A TPU topology without a TPU, and arguments that live on it."""

from __future__ import annotations

import os
from typing import Any

from turbort.errors import UnavailableError
from turbort_tpu.executors import WAYS
from turbort_tpu.generations import GENERATIONS

# Without the first, libtpu asks the metadata server of a cloud machine for minutes; without the second a second process
# aborts on libtpu's lock file; the rest answers what it would otherwise ask for, and keeps it quiet.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "3",
}


def require() -> None:
    """UnavailableError when jax or libtpu is missing."""
    way = WAYS["jax"]
    if missing := way.missing(emulated=False):
        raise UnavailableError(f"compiling for TPUs needs {' and '.join(missing)}, which cannot be imported", fix=way.install)


def prepare() -> None:
    """Set what libtpu needs on a machine without a TPU; must run before jax is used. What the user set stays."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def devices(target: str) -> list[Any]:
    """The devices of a small topology of generation `target`."""
    from jax.experimental import topologies

    found: list[Any] = topologies.get_topology_desc(platform="tpu", topology_name=GENERATIONS[target].topology).devices
    return found


class On:
    """Makes arguments for one device of a target: `on(shape, dtype)` or, for trees, `on.tree(x)`."""

    def __init__(self, target: str) -> None:
        from jax.sharding import SingleDeviceSharding

        self.device = devices(target)[0]
        self._sharding = SingleDeviceSharding(self.device)

    def __call__(self, shape: tuple[int, ...], dtype: Any) -> Any:
        import jax

        return jax.ShapeDtypeStruct(shape, dtype, sharding=self._sharding)

    def tree(self, value: Any) -> Any:
        """The same tree with every array replaced by its shape on the target."""
        import jax

        return jax.tree.map(lambda leaf: self(leaf.shape, leaf.dtype), value)


class Host(On):
    """Arguments for the device of this process, where XLA:CPU stands in for a TPU."""

    def __init__(self) -> None:
        import jax
        from jax.sharding import SingleDeviceSharding

        self.device = jax.devices()[0]
        self._sharding = SingleDeviceSharding(self.device)
