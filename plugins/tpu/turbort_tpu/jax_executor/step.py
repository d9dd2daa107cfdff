"""A model's step as one compiled program per shape: loaded if `turbort compile` wrote it, else compiled."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import NamedSharding
from torch import Tensor
from torch.utils import _pytree as pytree

from turbort_tpu.bridge.convert import spec_of, to_jax, to_torch
from turbort_tpu.bridge.executor import OnPeak
from turbort_tpu.bridge.trace import count_calls, key_of, shapes_of, tensors_of
from turbort_tpu.jax_executor import runtime
from turbort_tpu.jax_executor.program import Staged, trace
from turbort_tpu.jax_executor.shelf import Shelf, first_line
from turbort_tpu.jax_executor.signature import Signature
from turbort_tpu.jax_executor.spread import Spread, spread_of

log = logging.getLogger("turbort")


class CompiledStep:
    """Calls a step as one compiled program; a new one for every new set of shapes, dtypes and plain values."""

    def __init__(self, step: Callable[..., Any], on_peak: OnPeak = lambda size: None, shelf: Shelf | None = None) -> None:
        self._step = step
        self._on_peak = on_peak
        self._shelf = shelf or Shelf()
        self._programs: dict[Any, _Loaded] = {}
        self._arrays: list[Any] | None = None

    @property
    def compiled(self) -> int:
        """How many programs exist: one per shape."""
        return len(self._programs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        key = key_of(args, kwargs)
        if key not in self._programs:
            self._programs[key] = self._load(args, kwargs)
        loaded = self._programs[key]
        outputs = self._run(loaded, [loaded.placed(tensor) for tensor in tensors_of(args, kwargs)])
        count_calls(self._step, loaded.staged.program.calls)
        return pytree.tree_unflatten([to_torch(array) for array in outputs], loaded.staged.program.structure)

    def _run(self, loaded: _Loaded, inputs: list[Any]) -> list[Any]:
        held = loaded.staged.held
        if not loaded.untried:
            found: list[Any] = loaded.run(*held, inputs)
            return found
        try:
            outputs: list[Any] = jax.block_until_ready(loaded.run(*held, inputs))
        except Exception as error:  # noqa: BLE001 - whatever a runtime has against a foreign program, compiling it here may help
            log.warning("the step that was compiled ahead of time does not run here: %s", first_line(error))
            loaded.run = self._compile(loaded.staged)
            outputs = loaded.run(*held, inputs)
        loaded.untried = False
        return outputs

    def _load(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Loaded:
        runtime.start()
        whole = tensors_of(args, kwargs)
        spread = spread_of(whole)
        chips = f" over {spread.mesh.size} chips" if spread else ""
        log.info("preparing the step for %s%s", shapes_of(args), chips)
        if spread:
            args, kwargs = pytree.tree_map_only(Tensor, spread.share, (args, kwargs))
        program, parameters, _ = trace(self._step, args, kwargs)
        if self._arrays is None:
            self._arrays = [to_jax(tensor) for tensor in parameters.values()]
        constants = {name: to_jax(tensor) for name, tensor in program.constants.items()}
        held: Any = (program.weights, constants, self._arrays)
        if spread:
            held = spread.placed(held)
        staged = Staged(program, held, [_shape(tensor, spread) for tensor in whole], spread)
        ahead = self._ahead(staged)
        return _Loaded(staged, ahead or self._compile(staged), untried=ahead is not None)

    def _ahead(self, staged: Staged) -> Any | None:
        """The executable of `turbort compile` for this program; None, with the reason said, where there is none."""
        if not self._shelf:
            return None
        started = time.perf_counter()
        device = jax.devices()[0]
        entry, why = self._shelf.find(Signature.of(staged, device))
        if entry is not None:
            loaded, why = entry.load(staged.trees, device)
            if loaded is not None:
                self._on_peak(entry.peak)
                log.info("loaded %s in %.1f s, nothing is compiled", entry.path, time.perf_counter() - started)
                return loaded
        log.warning("what was compiled ahead of time is not used: %s", why)
        return None

    def _compile(self, staged: Staged) -> Any:
        started = time.perf_counter()
        log.info("compiling the step")
        run = staged.traced().lower().compile()
        peak = getattr(run.memory_analysis(), "peak_memory_in_bytes", 0) or 0
        self._on_peak(peak)
        log.info("compiled in %.1f s, peak %.2f GiB by the compiler's own account", time.perf_counter() - started, peak / 2**30)
        return run


@dataclass(eq=False)
class _Loaded:
    """A program ready to be called; `untried` until one from a folder has run once."""

    staged: Staged
    run: Any
    untried: bool

    def placed(self, tensor: Tensor) -> Any:
        """An argument where the program wants it."""
        array, spread = to_jax(tensor), self.staged.spread
        return spread.placed(array, spread.spec(tensor)) if spread else array


def _shape(tensor: Tensor, spread: Spread | None) -> jax.ShapeDtypeStruct:
    """An argument where the program wants it, without values."""
    found = spec_of(tensor)
    if spread is None:
        return found
    return jax.ShapeDtypeStruct(found.shape, found.dtype, sharding=NamedSharding(spread.mesh, spread.spec(tensor)))
