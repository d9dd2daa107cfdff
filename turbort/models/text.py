"""From prompts to the text embeddings that the transformer attends to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from turbort.checkpoints import open_checkpoint, stream
from turbort.models.layers import Linear
from turbort.models.prompt import Tokenizer
from turbort.models.spec import ModelSpec
from turbort.models.umt5 import Umt5
from turbort.quant.qtensor import QTensor
from turbort.quant.schemes import quantize

STEP = 64
"""Prompts are padded to a multiple of this many tokens, so that a device that compiles per shape meets few shapes."""

AT_ONCE = 1 << 22
"""Values of a matrix that are quantised at once."""


class TextEncoder:
    """A tokenizer and a umT5 encoder with its weights in place."""

    def __init__(self, tokenizer: Tokenizer, model: Umt5, text_len: int) -> None:
        self.tokenizer = tokenizer
        self.model = model
        self.text_len = text_len

    @classmethod
    def load(
        cls,
        spec: ModelSpec,
        files: Mapping[str, Path],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        scheme: str | None = None,
    ) -> TextEncoder:
        """Read the files of roles `text` and `tokenizer`, one tensor at a time.

        `scheme` stores the matrices as QTensors (`int8-channel` halves a 11 GB umT5-xxl); codes that the file itself
        has stay as they are. Raises CheckpointError when the files do not hold this encoder.
        """
        with torch.device("meta"):
            model = Umt5(spec.text).requires_grad_(False).eval()
        expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        for name, value in stream(open_checkpoint(files["text"]), expected, device=torch.device(device)):
            _place(model, name, value, torch.device(device), dtype, scheme)
        return cls(Tokenizer(files["tokenizer"], spec.dit.text_len), model, spec.dit.text_len)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings [B, text_len, dim]; rows after a prompt's last token are zero, as Wan's transformer expects."""
        return torch.cat([self._encode(prompt) for prompt in prompts])

    def _encode(self, prompt: str) -> Tensor:
        ids = self.tokenizer.ids(prompt)
        length = min(self.text_len, -(-len(ids) // STEP) * STEP)
        device = self.model.shared.weight.device
        row = torch.zeros(1, length, dtype=torch.long)
        row[0, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        mask = (torch.arange(length) < len(ids)).long()[None]
        embedded: Tensor = self.model(row.to(device), mask.to(device))
        padded = embedded.new_zeros(1, self.text_len, embedded.shape[-1])
        padded[:, : len(ids)] = embedded[:, : len(ids)]
        return padded


def _place(
    model: nn.Module, name: str, value: Tensor | QTensor, device: torch.device, dtype: torch.dtype, scheme: str | None
) -> None:
    owner, _, attribute = name.rpartition(".")
    module = model.get_submodule(owner)
    linear = isinstance(module, Linear)
    packed: Tensor | QTensor
    if isinstance(value, QTensor) and linear:
        packed = value.to(device)
    else:
        there = value.to(device)
        packed = (there.dequantize(dtype) if isinstance(there, QTensor) else there.to(dtype)).contiguous()
        if scheme is not None and linear:
            packed = _in_parts(packed, scheme)
    del module._parameters[attribute]
    setattr(module, attribute, nn.Parameter(packed, requires_grad=False) if isinstance(packed, Tensor) else packed)


def _in_parts(weight: Tensor, scheme: str) -> QTensor:
    """`quantize(weight, scheme)`, some rows at a time where a row has a scale of its own.

    At once, the float32 copies of umT5's widest matrix would be the peak of a small model's run.
    """
    rows = max(1, AT_ONCE // weight.shape[-1])
    if scheme != "int8-channel" or len(weight) <= rows:
        return quantize(weight, scheme)
    parts = [quantize(part, scheme) for part in torch.split(weight, rows)]
    values, scales = (torch.cat([getattr(part, name) for part in parts]) for name in ("values", "scales"))
    return QTensor(scheme, values, scales, weight.dtype)
