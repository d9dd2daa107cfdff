"""The video VAE of a session: bound to the plan, with the weights its jobs need, decoding latents into files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from turbort.bind import Binder, executed
from turbort.checkpoints import open_checkpoint, stream
from turbort.job import Event, OnEvent
from turbort.models.config import ModelSpec
from turbort.models.vae import build_vae
from turbort.plan import Plan
from turbort.registry import Registry


class Pixels:
    """A VAE whose decoder is loaded at once and whose encoder waits until an image asks for it.

    A video made from text alone never encodes; the encoder of a Wan 2.1 VAE is two fifths of its weights.
    """

    def __init__(
        self, spec: ModelSpec, plan: Plan, registry: Registry, path: Path, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.dtype = dtype
        with torch.device("meta"):
            self.vae = build_vae(spec.vae).requires_grad_(False).eval()
        self._binder = Binder(self.vae, plan, "vae", registry, device=device, dtype=dtype)
        self._checkpoint = open_checkpoint(path)
        # The whole file is checked even where half of it is used: a wrong VAE is refused before a video is begun.
        stream(self._checkpoint, self._binder.expected())

    @property
    def digest(self) -> str:
        """A name for the file's content."""
        return self._checkpoint.digest

    def missing(self, *, encoder: bool) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights that are not there yet, of the decoder and, if asked, the encoder."""
        every = self._binder.expected()
        return {name: shape for name, shape in every.items() if encoder or not name.startswith(self.vae.encoding)}

    def load(self, used: Callable[[], int | None], on_event: OnEvent, *, encoder: bool) -> None:
        """Put in place what is not there yet: the decoder, and the encoder where `encoder` asks for it."""
        wanted = self.missing(encoder=encoder)
        for number, (name, value) in enumerate(stream(self._checkpoint, wanted, ignore=("*",), device=self._binder.device)):
            self._binder.place(name, value)
            on_event(Event("load", number + 1, len(wanted), memory=used(), message="vae"))

    def latents(self, x: Tensor) -> Tensor:
        """Latents in the dtype that the decoder computes in."""
        return x.to(self.dtype)

    def executed(self) -> list[dict[str, Any]]:
        """What ran so far."""
        return executed(self.vae, "vae")
