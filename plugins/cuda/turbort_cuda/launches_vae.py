"""Launches of the VAE's kernels: see `turbort_cuda.launches`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from turbort_cuda.configs import Config, conv_class, row
from turbort_cuda.kernels import conv3d, vae
from turbort_cuda.launch_row import INT, A, Launch

CONVOLUTIONS = ((96, 96), (192, 192), (384, 384), (96, 3), (16, 384))
"""Inputs and outputs of the decoder's convolutions."""


def vae_launches(capability: int) -> Iterator[Launch]:
    """Norm with SiLU, and the convolutions of the Wan decoder with the shipped configurations."""
    yield Launch(
        "vae-norm-silu",
        vae.norm_silu_kernel,
        {"x": "*bf16", "gamma": "*bf16", "out": "*bf16", "M": INT, "C": A, "stride": A, "root": "fp32", "eps": "fp32"},
        {"WIDTH": 128, "ROWS": 32},
        4,
        3,
    )
    for inputs, outputs in CONVOLUTIONS:
        yield convolution(f"conv3d-{inputs}-{outputs}", inputs, outputs, row("conv3d", capability, conv_class(outputs)))


def convolution(name: str, inputs: int, outputs: int, c: Config) -> Launch:
    """One convolution with the configuration `c`."""
    k, chunks, tail = conv3d.split(inputs, c["K"], bool(c.get("tail")))
    tma, n1, n2 = bool(c.get("tma")), c["N1"], c["N2"]
    blocks = {
        "x": [1, c["BH"], c["BW"], k],
        "x_tail": [1, c["BH"], c["BW"], tail],
        "w1": [1, n1, k],
        "w1_tail": [1, n1, tail],
        "w2": [1, n2, k],
        "w2_tail": [1, n2, tail],
    }
    arguments = {name: f"tensordesc<bf16{block}>" if tma else "*bf16" for name, block in blocks.items() if 0 not in block}
    constants: dict[str, Any] = {name: None for name, block in blocks.items() if 0 in block}
    arguments |= {"bias": "*bf16", "out": "*bf16", "tiles": INT, "T": INT, "H": A, "W": A, "C": A}
    arguments |= dict.fromkeys(("OUTPUTS", "N"), A if outputs % 16 == 0 else INT)
    constants |= {
        "BH": c["BH"],
        "BW": c["BW"],
        "K": k,
        "CHUNKS": chunks,
        "TAIL": tail,
        "N1": n1,
        "N2": n2,
        "GROUP": c.get("group", 1),
        "SWAP": bool(c.get("swap")),
        "HAS_BIAS": True,
        "TMA": tma,
        "STAGES": c["stages"],
        "FLATTEN": bool(c.get("flatten")),
    }
    return Launch(name, conv3d.conv3d_kernel, arguments, constants, c["warps"], c["stages"], "bf16")
