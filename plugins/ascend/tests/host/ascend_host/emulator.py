"""Arithmetic for `npu` tensors on the CPU: every op runs on aliases of the stand-in's memory.

torch-npu's allocator, views, streams, graphs and Meta kernels stay real. `npu::` ops run as `references`, each result
held against the Meta kernel of torch-npu in shape and dtype; an op without a reference is an error, never a guess.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ascend_host.references import REFERENCES

REAL = frozenset(
    {
        "aten::empty.memory_format", "aten::empty_strided", "aten::empty_like", "aten::new_empty", "aten::new_empty_strided",
        "aten::set_.source_Storage", "aten::set_.source_Storage_storage_offset", "aten::set_.source_Tensor",
        "aten::record_stream",        "aten::_reshape_alias", "aten::_unsafe_view", "aten::resize_", "aten::is_pinned",
    }
)  # fmt: skip
"""Ops that allocate or view: torch-npu's own, nothing to compute."""

WIDE = frozenset(
    {
        "aten::convolution", "aten::conv2d", "aten::conv3d", "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm",
        "aten::matmul", "aten::linear",
    }
)  # fmt: skip
"""Ops that CPUs do slowly or not at all in 16 bits; they run in float32 there, and the result is rounded once."""
HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in the stand-in's memory: enough to read and write it without keeping it alive."""

    address: int
    size: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @staticmethod
    def of(tensor: Tensor) -> Place:
        """The place of an npu tensor."""
        storage = tensor.untyped_storage()
        return Place(
            storage.data_ptr(), storage.nbytes(), tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.storage_offset()
        )

    def alias(self) -> Tensor:
        """A CPU tensor on the same bytes."""
        if not self.size:
            return torch.empty(self.shape, dtype=self.dtype)
        raw = torch.frombuffer((ctypes.c_uint8 * self.size).from_address(self.address), dtype=torch.uint8)
        return torch.empty(0, dtype=self.dtype).set_(raw.untyped_storage(), self.offset, self.shape, self.stride)


def mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """`tree` with `function` applied to its leaves. An op's arguments are tuples, lists and dicts; torch's own pytree, which
    knows everything, takes most of a run's time."""
    if isinstance(tree, list):
        return [mapped(function, part) for part in tree]
    if isinstance(tree, tuple):
        return tuple([mapped(function, part) for part in tree])
    if isinstance(tree, dict):
        return {name: mapped(function, part) for name, part in tree.items()}
    return function(tree)


def leaves(tree: Any) -> list[Any]:
    """The leaves of `tree`, in order."""
    found: list[Any] = []
    mapped(found.append, tree)
    return found


def on_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """`tree` with `function` applied to its tensors."""
    return mapped(lambda value: function(value) if isinstance(value, Tensor) else value, tree)


def _is_npu(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "npu"


def _on_cpu(tree: Any) -> Any:
    """Places and npu tensors as CPU aliases."""
    return mapped(lambda v: v.alias() if isinstance(v, Place) else Place.of(v).alias() if _is_npu(v) else v, tree)


def _placed(tree: Any) -> Any:
    return mapped(lambda v: Place.of(v) if _is_npu(v) else v, tree)


class Emulator(TorchDispatchMode):
    """Computes what reaches the NPU backend; `ops` counts calls by name."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: dict[str, int] = {}
        self._tape: list[Callable[[], None]] | None = None

    def install(self) -> None:
        """Compute for the rest of this process, replays of captured graphs included."""
        self.__enter__()
        self._watch_graphs()

    def _watch_graphs(self) -> None:
        graph = torch.npu.NPUGraph
        begin, end, replay = graph.capture_begin, graph.capture_end, graph.replay
        tapes: dict[int, list[Callable[[], None]]] = {}

        def capture_begin(this: Any, *args: Any, **kwargs: Any) -> None:
            begin(this, *args, **kwargs)
            self._tape = tapes[id(this)] = []

        def capture_end(this: Any) -> None:
            self._tape = None
            end(this)

        def replay_all(this: Any) -> None:
            replay(this)
            for work in tapes[id(this)]:
                work()

        graph.capture_begin, graph.capture_end, graph.replay = capture_begin, capture_end, replay_all

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        options = dict(kwargs or {})
        tensors = [leaf for leaf in leaves((args, options)) if isinstance(leaf, Tensor)]
        wanted = options.get("device")
        device = torch.device(wanted) if wanted is not None else None
        mine = [tensor for tensor in tensors if tensor.device.type == "npu"]
        if not mine and (device is None or device.type != "npu"):
            return func(*args, **options)
        name = str(func._schema.name) + (f".{func._schema.overload_name}" if func._schema.overload_name else "")
        if name in REAL:
            return func(*args, **options)
        if name.startswith("c10d::"):
            # The stand-in of HCCL moves the bytes, in torch-npu's own queue, which must be empty before a reference reads them.
            work = func(*args, **options)
            torch.npu.synchronize()
            return work
        if func.is_view:
            # In inference mode composite ops arrive whole, and one such as `to` only views when it need not copy.
            if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
                with self:
                    return func.decompose(*args, **options)
            return func(*args, **options)
        if name == "aten::_local_scalar_dense":
            return func(_on_cpu(args[0]))
        self.ops[name] = self.ops.get(name, 0) + 1
        target = device or mine[0].device
        if any(tensor.device.type == "meta" for tensor in tensors):
            raise RuntimeError(f"{name} mixes meta and npu tensors")
        if "device" in options:
            options["device"] = "cpu"
        return self._compute(func, name, args, options, target)

    def _compute(self, func: Any, name: str, args: Sequence[Any], options: dict[str, Any], target: torch.device) -> Any:
        where, named = _placed(tuple(args)), _placed(options)
        result = _run(func, name, where, named)
        written = [i for i, argument in enumerate(func._schema.arguments) if argument.alias_info and argument.alias_info.is_write]
        if written:
            if self._tape is not None:
                self._tape.append(lambda: _run(func, name, where, named))
            changed = [args[i] if i < len(args) else options.get(func._schema.arguments[i].name) for i in written]
            return changed[0] if len(changed) == 1 else tuple(changed)
        if target.type != "npu":
            return on_tensors(torch.clone, result)
        out = on_tensors(lambda tensor: _uploaded(tensor, target), result)
        if self._tape is not None:
            places = _placed(out)

            def again() -> None:
                for place, tensor in zip(leaves(places), leaves(_run(func, name, where, named)), strict=True):
                    if isinstance(place, Place):
                        place.alias().copy_(tensor)

            self._tape.append(again)
        return out


def _run(func: Any, name: str, where: Any, named: Any) -> Any:
    """One op on the CPU, reading and writing the stand-in's memory."""
    if name.startswith("npu::"):
        return _vendor(func, name, where, named)
    args, options = _on_cpu(where), _on_cpu(named)
    halves = [leaf.dtype for leaf in leaves((args, options)) if isinstance(leaf, Tensor) and leaf.dtype in HALVES]
    if halves and name.partition(".")[0] in WIDE:
        args, options = on_tensors(lambda t: t.to(torch.float32), (args, options))
        return on_tensors(lambda t: t.to(halves[0]), func(*args, **options))
    return func(*args, **options)


def _vendor(func: Any, name: str, where: Any, named: Any) -> Any:
    if name not in REFERENCES:
        raise RuntimeError(f"the emulator has no reference for {name}; add one to ascend_host/references.py")
    result = REFERENCES[name](*_on_cpu(where), **_on_cpu(named))
    if torch._C._dispatch_has_kernel_for_dispatch_key(func._schema.name, "Meta"):
        args, options = mapped(lambda v: _meta(v), (where, named))
        _same_form(name, leaves(func(*args, **options)), leaves(result))
    return result


def _meta(value: Any) -> Any:
    if isinstance(value, Place):
        return torch.empty_strided(value.shape, value.stride, dtype=value.dtype, device="meta")
    return value.to("meta") if isinstance(value, Tensor) else value


def _same_form(name: str, metas: list[Any], results: list[Any]) -> None:
    """The first output is what turbort uses; the vendor's Meta kernel decides its shape and dtype."""
    pairs = [(m, r) for m, r in zip(metas, results, strict=False) if isinstance(m, Tensor) and isinstance(r, Tensor)]
    first = pairs[0]
    if first[0].shape != first[1].shape or first[0].dtype != first[1].dtype:
        raise RuntimeError(
            f"{name}: torch-npu's Meta kernel says {tuple(first[0].shape)} {first[0].dtype}, "
            f"the reference made {tuple(first[1].shape)} {first[1].dtype}"
        )


def _uploaded(tensor: Tensor, target: torch.device) -> Tensor:
    plain = tensor if torch.ops.aten.is_non_overlapping_and_dense(tensor) else tensor.contiguous()
    made = torch.empty_strided(plain.shape, plain.stride(), dtype=plain.dtype, device=target)
    Place.of(made).alias().copy_(plain)
    return made
