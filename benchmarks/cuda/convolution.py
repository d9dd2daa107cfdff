"""The VAE's 3x3x3 convolutions: Triton's against cuDNN's, times and errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from turbort_cuda import variants
from turbort_cuda.kernels import conv3d
from turbort_cuda.tune import Convolution

from benchmarks.cuda.results import Results
from benchmarks.cuda.timing import DEVICE, nmse
from benchmarks.cuda.workload import PIXELS, TOY

STAGES: list[Convolution] = [
    (inputs, outputs, 4, PIXELS[0] // part, PIXELS[1] // part)
    for inputs, outputs, part in ((384, 384, 8), (384, 384, 4), (192, 192, 2), (96, 96, 1), (96, 3, 1))
]
"""Inputs, outputs, frames, rows, columns of the Wan decoder's stages, 4 frames a call."""

PART = 64
"""Rows and columns of the corner that the float64 convolution is made of."""


def made(size: Convolution) -> tuple[Tensor, Tensor, Tensor]:
    """Input [1, T + 2, H, W, C], weight and bias, bf16."""
    inputs, outputs, frames, height, width = size
    draw = torch.Generator(DEVICE).manual_seed(sum(size))
    x = torch.randn(1, frames + 2, height, width, inputs, device=DEVICE, generator=draw).to(torch.bfloat16)
    weight = torch.randn(outputs, inputs, 3, 3, 3, device=DEVICE, generator=draw) * (27 * inputs) ** -0.5
    bias = torch.randn(outputs, device=DEVICE, generator=draw) * 0.1
    return x, weight.to(torch.bfloat16), bias.to(torch.bfloat16)


def cudnn(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """torch's convolution of the same, weights laid out beforehand."""
    return F.conv3d(x.permute(0, 4, 1, 2, 3), weight, bias, padding=(0, 1, 1))


def corner(y: Tensor) -> Tensor:
    return y[..., :PART, :PART]


def true_corner(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The first rows and columns of the convolution in float64, from the same bf16 values."""
    seen = x[:, :, : PART + 1, : PART + 1].permute(0, 4, 1, 2, 3).double()
    return corner(F.conv3d(seen, weight.double(), bias.double(), padding=(0, 1, 1)))


def run(results: Results) -> None:
    """One row per stage and contender, with the error of a corner."""
    for size in [(16, 16, 2, 9, 11)] if TOY else STAGES:
        inputs, outputs, frames, height, width = size
        x, weight, bias = made(size)
        inner = weight.contiguous(memory_format=torch.channels_last_3d)
        flop = 2.0 * 27 * inputs * outputs * frames * height * width
        truth = true_corner(x, weight, bias)
        contenders: dict[str, Callable[[], Tensor]] = {
            "cuDNN": partial(cudnn, x, inner, bias),
            "Triton": partial(conv3d.convolved, x, weight, bias),
        }
        for who, call in contenders.items():
            name = f"{who} conv3d {inputs}->{outputs} at {height}x{width}, {frames} frames"
            try:
                error = nmse(corner(call()), truth) ** 0.5
            except Exception as failure:  # noqa: BLE001 - a contender that fails is a row too
                results.note(name, error=f"{type(failure).__name__}: {str(failure)[:200]}")
                continue
            results.time(name, call, flop=flop, relative_error=error)


Pair = tuple[Callable[[], Any], Callable[[], Any]]


def checks(outputs: int) -> Iterator[tuple[str, str, Callable[[], Pair]]]:
    """Every configuration that `tune` times against float64, at sizes that no tile divides, 3 frames."""
    inputs = max(96, outputs)
    size = (inputs, outputs, 3, PIXELS[0] // 4 + 3, PIXELS[1] // 4 + 5)
    for config in variants.convolutions(outputs):
        yield f"variant conv3d {inputs}->{outputs} {variants.label(config)}", "bf16", partial(_checked, size, config)


def _checked(size: Convolution, config: dict[str, Any]) -> Pair:
    x, weight, bias = made(size)
    return (
        lambda: conv3d.convolved(x, weight, bias, config),
        lambda: F.conv3d(x.permute(0, 4, 1, 2, 3).double(), weight.double(), bias.double(), padding=(0, 1, 1)),
    )
