"""What each TPU generation is and can do, as data. One "device" is what one XLA program runs on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

GIB = 1 << 30
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Generation:
    """One TPU generation.

    Attributes:
        name: what profiles and `--targets` call it.
        title: what people call it.
        hbm: bytes of HBM that the compiler lets one device use.
        vmem, smem: bytes of vector and scalar memory of one core.
        topology: name of a small topology that libtpu compiles for without a TPU.
        pci: PCI device id of the chip (vendor 0x1ae0).
        kinds: what JAX calls a device of this generation (`device_kind`).
        no_gain: storage formats that bring nothing here, each with the reason in words.
    """

    name: str
    title: str
    hbm: int
    vmem: int
    smem: int
    topology: str
    pci: str
    kinds: tuple[str, ...]
    no_gain: Mapping[str, str]

    @property
    def features(self) -> frozenset[str]:
        """Formats that its matrix unit multiplies faster than bfloat16, and the tag of every TPU."""
        return frozenset({"xla", *(name for name in ("int8", "fp8") if name not in self.no_gain)})

    @property
    def dtypes(self) -> frozenset[str]:
        """Storage dtypes that kernels of this backend compute in on it."""
        return frozenset({"float32", "bfloat16"})


_NO_FP8 = "FP8 brings no gain on {}: its matrix unit has no FP8 mode, so e4m3 values are widened to BF16 first"
_NO_INT8 = "INT8 brings no gain on {}: its matrix unit multiplies INT8 at the BF16 rate{}"

# Sources: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x} for rates; the HBM figures are those of the compiler's own
# out-of-memory messages (libtpu 0.0.42), VMEM and SMEM those of jax's table of chips (jax 0.10, pallas/mosaic/tpu_info.py).
GENERATIONS: Mapping[str, Generation] = MappingProxyType(
    {
        row.name: row
        for row in (
            Generation(
                "v4", "TPU v4", int(15.25 * GIB), 16 * MIB, MIB, "v4:2x2x1", "0x005e", ("TPU v4",),
                {
                    "int8": _NO_INT8.format("v4", " (275 TOPS, 275 TFLOPS), and Mosaic refuses INT8 products there"),
                    "fp8": _NO_FP8.format("v4"),
                },
            ),
            Generation(
                "v5e", "TPU v5e", int(15.75 * GIB), 128 * MIB, MIB, "v5e:2x2", "0x0063", ("TPU v5 lite", "TPU v5e"),
                {"fp8": _NO_FP8.format("v5e")},
            ),
            Generation(
                "v5p", "TPU v5p", int(95.74 * GIB), 64 * MIB, MIB, "v5p:2x2x1", "0x0062", ("TPU v5", "TPU v5p"),
                {"fp8": _NO_FP8.format("v5p")},
            ),
            Generation(
                "v6e", "TPU v6e (Trillium)", int(31.25 * GIB), 128 * MIB, MIB, "v6e:2x2", "0x006f", ("TPU v6 lite", "TPU v6e"),
                {"fp8": "FP8 brings no gain on v6e: its matrix unit multiplies FP8 at 918 TFLOPS and INT8 at 1836 TOPS"},
            ),
            Generation(
                "tpu7x", "TPU7x (Ironwood)", int(94.75 * GIB), 64 * MIB, MIB, "tpu7x:2x2x1", "0x0076", ("TPU7x",),
                {"int8": _NO_INT8.format("tpu7x", "; fp8 is its 8-bit format (4614 TFLOPS against 2307)")},
            ),
        )
    }
)  # fmt: skip


def by_kind(kind: str) -> Generation | None:
    """The generation of a JAX device by its `device_kind`."""
    return next((row for row in GENERATIONS.values() if kind in row.kinds), None)
