"""Checks on a backend as a whole: a light import, an honest probe, a sound kernel table, plausible memory."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from turbort.backend import Device, MemoryStats, Unavailable
from turbort.kernel import Kernel
from turbort.op import OpSpec, Sample
from turbort.precision import SUMS
from turbort.quant.schemes import SCHEMES, quantize
from turbort.testing.case import FLOAT_DTYPES, samples_of
from turbort.testing.compare import CheckFailed
from turbort.testing.oracle import Inputs
from turbort.testing.values import all_same_bits, snapshot

if TYPE_CHECKING:
    from turbort.testing.suite import Suite

PROBE_SECONDS = 5.0
PROBE_BYTES = 64 << 20

_IMPORT = """
import json, sys
import turbort.registry, turbort.backend, turbort.kernel, turbort.precision
before = set(sys.modules)
module = __import__({target!r}, fromlist=["_"])
for backend in getattr(module, "turbort_backends", tuple)():
    pass
print(json.dumps(sorted({{name.partition(".")[0] for name in set(sys.modules) - before}})))
"""


def light_import(suite: Suite) -> None:
    """Importing the plugin and constructing its backends loads the standard library, turbort and itself only."""
    plugin = suite.registry.plugins.get(suite.name)
    target = plugin.target if plugin else type(suite.backend).__module__
    if find_spec(target) is None:
        return  # made inside this process (a notebook, a test): there is nothing to import afresh
    command = [sys.executable, "-c", _IMPORT.format(target=target)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    if answer.returncode:
        last = (answer.stderr.strip().splitlines() or ["no output"])[-1]
        raise CheckFailed("light-import", f"importing {target} in a fresh process failed: {last}")
    own = target.partition(".")[0]
    loaded = set(json.loads(answer.stdout.strip().splitlines()[-1]))
    heavy = sorted(loaded - set(sys.stdlib_module_names) - {own, "turbort"})
    if heavy:
        raise CheckFailed("light-import", f"importing {target} loads {', '.join(heavy)}; import them where they are used")


def probe(suite: Suite) -> None:
    """`probe()` answers quickly with devices or an Unavailable, and what it says makes sense."""
    started = time.perf_counter()
    try:
        found: object = suite.backend.probe()
    except Exception as error:
        raise CheckFailed("probe", f"probe raised {type(error).__name__}: {error}; return Unavailable(reason, fix)") from error
    seconds = time.perf_counter() - started
    if seconds > PROBE_SECONDS:
        raise CheckFailed("probe", f"probe took {seconds:.1f} s, allowed are {PROBE_SECONDS:.0f}")
    if isinstance(found, Unavailable):
        raise CheckFailed("probe", f"a device was there a moment ago, and now: {found.reason}")
    if not isinstance(found, list) or not all(isinstance(item, Device) for item in found):
        raise CheckFailed("probe", f"probe returned {found!r}, not a list of Device")
    for device in found:
        unknown = sorted(name for name in device.dtypes if not isinstance(getattr(torch, name, None), torch.dtype))
        for bad, message in (
            (device.backend != suite.name, f"{device.name} says it belongs to backend {device.backend!r}"),
            (not device.name or not device.arch, f"device {device.torch_name} has no name or no arch"),
            (unknown, f"{device.name} lists dtypes that torch does not have: {', '.join(unknown)}"),
            (device.memory is not None and device.memory <= 0, f"{device.name} has {device.memory} bytes of memory"),
        ):
            if bad:
                raise CheckFailed("probe", message)


def kernels(suite: Suite) -> None:
    """Names are unique, and every op, precision, scheme and target in the kernel table exists."""
    problems: list[str] = []
    rows = suite.registry.kernels(suite.name)
    for (op, name), count in Counter((kernel.op, kernel.name) for kernel in rows).items():
        if count > 1:
            problems.append(f"{count} kernels are named {op}/{name}")
    for kernel in rows:
        spec = suite.registry.ops.get(kernel.op)
        problems += [f"{kernel.op}/{kernel.name}: {line}" for line in _faults(kernel, spec, suite)]
    if problems:
        raise CheckFailed("kernels", "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else ""))


def _faults(kernel: Kernel, spec: OpSpec | None, suite: Suite) -> list[str]:
    if spec is None:
        return [f"there is no op {kernel.op!r}"]
    lines = [f"there is no precision {name!r}" for name in kernel.precisions if name not in suite.registry.precisions]
    lines += [f"{spec.name} has no contract for {name}" for name in kernel.precisions if name not in spec.precisions]
    lines += [f"emits {name!r}, which is no scheme" for name in kernel.emits if name not in (*SCHEMES, *SUMS)]
    if kernel.emits and not spec.emits:
        lines.append(f"{spec.name} has no argument `emit`")
    if not kernel.precisions:
        lines.append("names no precision")
    for what, loader in (("target", kernel.load), ("pack", kernel.load_pack)):
        try:
            loaded = loader()
        except Exception as error:  # noqa: BLE001 - importing a vendor package can fail in any way
            lines.append(f"loading its {what} raised {type(error).__name__}: {error}")
            continue
        if what == "target":
            lines += _signature_faults(loaded, spec, kernel)
    return lines


def _signature_faults(loaded: Any, spec: OpSpec, kernel: Kernel) -> list[str]:
    """Whether the function can be called with every argument of the reference, the way models call it.

    `emit` is given to kernels that list what they emit, and to no others.
    """
    function = loaded.reference if isinstance(loaded, OpSpec) else loaded
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a compiled function without a signature: calling it will tell
        return []
    parameters = list(spec.signature.parameters.values())
    by_position = [None for p in parameters if p.kind is not p.KEYWORD_ONLY]
    filled_in = {"precision"} if kernel.emits else {"precision", "emit"}
    by_name = {p.name: None for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in filled_in}
    try:
        signature.bind(*by_position, **by_name)
    except TypeError as error:
        return [f"does not take the arguments of {spec.name}{spec.signature}: {error}"]
    return []


def offers(suite: Suite) -> None:
    """Every kernel accepts at least one sample at every precision it names (unless the device lacks what it needs)."""
    idle = []
    for kernel in suite.registry.kernels(suite.name):
        spec = suite.registry.ops.get(kernel.op)
        if spec is None or kernel.requires - suite.device.features:
            continue
        for name in kernel.precisions:
            floats = [FLOAT_DTYPES[name]] if name in FLOAT_DTYPES else list(FLOAT_DTYPES.values())
            dtypes = [dtype for dtype in floats if str(dtype).removeprefix("torch.") in suite.device.dtypes]
            calls = [_arguments(sample, dtype).call(spec.name) for dtype in dtypes for sample in samples_of(spec)]
            if calls and all(kernel.refusal(call, name, suite.device) for call in calls):
                idle.append(f"{kernel.op}/{kernel.name} at {name}")
    if idle:
        raise CheckFailed("offers", f"accepts no sample: {', '.join(idle)}")


def _arguments(sample: Sample, dtype: torch.dtype) -> Inputs:
    """A sample's arguments as shapes; samples that cannot be made on meta are made on the CPU."""
    generator = torch.Generator().manual_seed(0)
    try:
        return Inputs(sample.make(generator, dtype, torch.device("meta")))
    except (RuntimeError, NotImplementedError):
        return Inputs(sample.make(generator, dtype, torch.device("cpu")))


def packing(suite: Suite) -> None:
    """Packing the same weight twice gives the same bits, on devices that have what the kernel needs.

    What the bits mean is read back by the one-hot probe.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(256, 384, generator=generator)
    for kernel in suite.registry.kernels(suite.name):
        usable = not kernel.requires - suite.device.features
        packer = kernel.load_pack() if usable else None
        for name in kernel.precisions if packer else ():
            scheme = suite.registry.precisions[name].weight_scheme
            dtype = FLOAT_DTYPES.get(name, torch.float32)
            logical = quantize(weight, scheme) if scheme else weight.to(dtype)
            moved = logical.to(torch.device(suite.device.torch_name))
            first, second = (snapshot(packer(moved)) for _ in range(2)) if packer else ([], [])
            if not all_same_bits(first, second):
                raise CheckFailed("packing", f"{kernel.op}/{kernel.name} at {name} packs the same weight differently each time")


def memory(suite: Suite) -> None:
    """Memory figures are plausible, and follow an allocation from the pool where the device can tell."""
    backend, device = suite.backend, suite.device
    if device.torch_name == "meta":
        return
    backend.empty_cache(device)
    backend.reset_peak(device)
    before = backend.memory(device)
    with backend.pool(device, "native"):
        block = torch.ones(PROBE_BYTES, dtype=torch.uint8, device=device.torch_name)
        backend.synchronize(device)
        after = backend.memory(device)
        del block
    for stats in (before, after):
        _plausible(stats)
    if before.used is not None and after.used is not None and after.used - before.used < PROBE_BYTES // 4:
        raise CheckFailed("memory", f"allocating {PROBE_BYTES >> 20} MiB moved `used` by {(after.used - before.used) >> 20} MiB")
    if before.peak is not None and after.peak is not None and after.peak < before.peak:
        raise CheckFailed("memory", "`peak` fell without reset_peak")


def _plausible(stats: MemoryStats) -> None:
    present = [(name, value) for name in ("used", "peak", "total") if (value := getattr(stats, name)) is not None]
    for name, value in present:
        if not isinstance(value, int) or value < 0:
            raise CheckFailed("memory", f"`{name}` is {value!r}, not a number of bytes")
    ordered = [value for _, value in present]
    if ordered != sorted(ordered):
        raise CheckFailed("memory", f"used <= peak <= total does not hold: {', '.join(f'{n} {v}' for n, v in present)}")


def compiled_step(suite: Suite) -> None:
    """`compile_step` returns a callable that computes the same, also on inputs it has not seen."""
    if suite.device.torch_name == "meta":
        return

    def step(x: torch.Tensor) -> torch.Tensor:
        return x * 2 + 1

    compiled = suite.backend.compile_step(step, suite.device)
    for seed in (0, 1, 0):
        x = torch.randn(8, 16, generator=torch.Generator().manual_seed(seed)).to(suite.device.torch_name)
        got = compiled(x)
        suite.backend.synchronize(suite.device)
        if not torch.allclose(got.float().cpu(), step(x).float().cpu()):
            raise CheckFailed("compile-step", "a compiled step differs from the step itself")


def explanation(suite: Suite) -> None:
    """`explain` gives rows of text."""
    rows: object = suite.backend.explain(suite.device)
    if not isinstance(rows, Mapping) or not all(isinstance(part, str) for part in chain(rows, rows.values())):
        raise CheckFailed("explain", f"explain returned {rows!r}, not a mapping of str to str")


BACKEND_CHECKS: Mapping[str, Callable[[Suite], None]] = {
    "light-import": light_import,
    "probe": probe,
    "kernels": kernels,
    "offers": offers,
    "packing": packing,
    "memory": memory,
    "compile-step": compiled_step,
    "explain": explanation,
}
