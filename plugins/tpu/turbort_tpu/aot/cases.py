"""What is compiled for a TPU that is not here: every kernel at real shapes, and programs that must be refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from turbort_tpu.generations import Generation

BATCH, LENGTH, WIDTH, HEADS, HIDDEN, TEXT = 2, 32_760, 1536, 12, 8960, 512
"""The 1.3B model at 832x480, 81 frames, two samples."""
Shape = tuple[tuple[int, ...], str]


@dataclass(frozen=True)
class Case:
    """One program: a function of arrays, the shapes of its arguments, and what compiling it must give.

    Attributes:
        format: `int8`, `fp8` or None: only targets that gain from it compile this case.
        dots: how many matrix products of 8-bit codes with wide sums the program must keep.
        refusal: words that the compiler's refusal must contain; None for a program that must compile.
        targets: generations it is for; empty for all.
    """

    name: str
    build: Callable[[], Callable[..., Any]]
    arguments: tuple[Shape, ...]
    format: str | None = None
    dots: int = 0
    refusal: tuple[str, ...] | None = None
    targets: frozenset[str] = frozenset()

    def applies(self, generation: Generation) -> bool:
        """Whether this case is meant for a generation."""
        if self.targets and generation.name not in self.targets:
            return False
        return self.format is None or self.format in generation.features


def cases() -> Iterator[Case]:
    """Programs that must compile."""
    x, h = ((BATCH, LENGTH, WIDTH), "bfloat16"), ((BATCH, LENGTH, HIDDEN), "bfloat16")
    scale, gate = ((BATCH, LENGTH, 1), "float32"), ((BATCH, 1, WIDTH), "float32")
    for format, dtype in (("int8", "int8"), ("fp8", "float8_e4m3fn")):
        yield Case(
            f"linear {format} {WIDTH}->{HIDDEN} gelu",
            _matmul(gelu=True),
            (((BATCH, LENGTH, WIDTH), dtype), scale, ((HIDDEN, WIDTH), dtype), ((1, HIDDEN), "float32"), ((HIDDEN,), "bfloat16")),
            format,
            dots=1,
        )
        yield Case(
            f"linear {format} {HIDDEN}->{WIDTH} residual gate",
            _matmul(),
            (
                ((BATCH, LENGTH, HIDDEN), dtype), scale, ((WIDTH, HIDDEN), dtype), ((1, WIDTH), "float32"),
                ((WIDTH,), "bfloat16"), x, gate,
            ),
            format,
            dots=1,
        )  # fmt: skip
        yield Case(f"norm modulate to {format}", _norm(f"{format}-token"), (x, gate, gate), format)
        yield Case(f"gelu to {format}", _gelu(f"{format}-token"), (h,), format)
    yield Case("residual norm modulate", _residual_norm, (x, x, gate, gate, gate))
    yield Case("norm rope", _rope, (x, ((WIDTH,), "float32"), *[((LENGTH, 64), "float32")] * 2))
    tokens, text = ((BATCH, LENGTH, HEADS, 128), "bfloat16"), ((BATCH, TEXT, HEADS, 128), "bfloat16")
    yield Case("attention bf16 to text", _attention(False), (tokens, text, text))
    yield Case("attention bf16", _attention(False), (tokens, tokens, tokens))
    yield Case("attention int8", _attention(True), (tokens, tokens, tokens), "int8", dots=1)
    projection = (((128, 128), "bfloat16"), ((128,), "bfloat16"))
    yield Case("sla bf16", _sla(False), (tokens, tokens, tokens, *projection), targets=frozenset({"v4", "tpu7x"}))
    # Four key blocks per grid step, one product each.
    yield Case("sla int8", _sla(True), (tokens, tokens, tokens, *projection), "int8", dots=4)


def controls() -> Iterator[Case]:
    """Programs that must be refused; each names the guard that would otherwise be silent."""
    small = ((1, 1024, 1, 128), "bfloat16")
    yield Case(
        "int8 attention where Mosaic has none",
        _attention(True),
        (small,) * 3,
        refusal=("UnsupportedRhsType",),
        targets=frozenset({"v4"}),
    )
    real = ((1, LENGTH, HEADS, 128), "bfloat16")
    yield Case(
        "block too large for VMEM",
        _attention(False, block=3072),
        (real,) * 3,
        refusal=("Ran out of memory in memory space vmem",),
        targets=frozenset({"v5e"}),
    )
    yield Case(
        "unfused attention", _unfused, (((BATCH, HEADS, 32_768, 128), "bfloat16"),) * 3, refusal=("Ran out of memory on HBM",)
    )


def _matmul(gelu: bool = False) -> Callable[[], Callable[..., Any]]:
    def build() -> Callable[..., Any]:
        import jax.numpy as jnp

        from turbort_tpu.kernels.matmul import scaled_matmul

        return lambda *args: scaled_matmul(*args, out_dtype=jnp.bfloat16, gelu=gelu)

    return build


def _norm(emit: str) -> Callable[[], Callable[..., Any]]:
    def build() -> Callable[..., Any]:
        from turbort_tpu.kernels.rows import layer_norm_modulate

        return lambda x, scale, shift: layer_norm_modulate(x, scale, shift, eps=1e-6, emit=emit)

    return build


def _gelu(emit: str) -> Callable[[], Callable[..., Any]]:
    def build() -> Callable[..., Any]:
        from turbort_tpu.kernels.rows import gelu

        return lambda x: gelu(x, emit=emit)

    return build


def _residual_norm() -> Callable[..., Any]:
    from turbort_tpu.kernels.rows import gated_residual_norm_modulate

    return lambda *args: gated_residual_norm_modulate(*args, eps=1e-6)


def _rope() -> Callable[..., Any]:
    from turbort_tpu.kernels.rope import norm_rope

    return lambda *args: norm_rope(*args, heads=HEADS, eps=1e-6)


def _attention(int8: bool, **block: int) -> Callable[[], Callable[..., Any]]:
    """With the kernel's own block unless one is given."""

    def build() -> Callable[..., Any]:
        from turbort_tpu.kernels.attention import attention

        return lambda q, k, v: attention(q, k, v, int8=int8, **block)

    return build


def _sla(int8: bool) -> Callable[[], Callable[..., Any]]:
    def build() -> Callable[..., Any]:
        from turbort_tpu.kernels.sla import sla_attention

        return lambda *args: sla_attention(*args, topk=0.1, block=(64, 128), int8=int8)

    return build


def _unfused() -> Callable[..., Any]:
    """Attention in the form that XLA:TPU does not recognise: the scale follows the product."""
    import jax
    import jax.numpy as jnp

    def run(q: Any, k: Any, v: Any) -> Any:
        scores = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32) * 128**-0.5
        return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)

    return run
