"""The text stage: prompts to embeddings, remembered on disk so that a known prompt needs no encoder."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from turbort.checkpoints import open_checkpoint
from turbort.checkpoints.digest import digest_files
from turbort.io import atomic_bytes
from turbort.models.config import ModelSpec
from turbort.models.prompt import clean_prompt
from turbort.models.text import TextEncoder

FORMAT = 1


@dataclass(frozen=True)
class PromptCache:
    """Embeddings by encoder, its precision and the cleaned text, one safetensors file each. Damaged files are made again."""

    folder: Path

    @staticmethod
    def default() -> PromptCache:
        """`$TURBORT_CACHE/prompts`, else `turbort/prompts` in the user's cache folder."""
        base = os.environ.get("TURBORT_CACHE")
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return PromptCache((Path(base) if base else home / "turbort") / "prompts")

    def path(self, encoder: str, text: str) -> Path:
        """Where the embedding of a text lies; `encoder` names the encoder's files, precision and length."""
        key = hashlib.sha256(f"{FORMAT}\0{encoder}\0{clean_prompt(text)}".encode()).hexdigest()
        return self.folder / f"{key[:40]}.safetensors"

    def load(self, encoder: str, text: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
        """[1, text_len, dim], or None when it is not there or not whole."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            rows = load_file(self.path(encoder, text))["text"]
        except (OSError, SafetensorError, KeyError, ValueError):
            return None
        if rows.ndim != 2 or rows.shape[0] > shape[1] or rows.shape[1] != shape[2] or rows.dtype is not dtype:
            return None
        full = rows.new_zeros(shape)
        full[0, : len(rows)] = rows
        return full

    def store(self, encoder: str, text: str, embedding: Tensor) -> None:
        """Keep an embedding without its zero rows; a folder that cannot be written is passed over."""
        from safetensors.torch import save

        used = int(embedding[0].ne(0).any(dim=-1).sum())
        data = save({"text": embedding[0, :used].contiguous().cpu()})
        with contextlib.suppress(OSError, ValueError):
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic_bytes(self.path(encoder, text), data)


class Embedder:
    """Embeds texts with the files of one model; the encoder is loaded when a text is new, and freed afterwards."""

    def __init__(
        self,
        spec: ModelSpec,
        files: Mapping[str, Path],
        *,
        device: torch.device,
        dtype: torch.dtype,
        scheme: str | None = None,
        cache: PromptCache | None = None,
    ) -> None:
        self.spec, self.files, self.device, self.dtype, self.scheme, self.cache = spec, files, device, dtype, scheme, cache
        self.loads = 0
        self._known: dict[str, Tensor] = {}

    @property
    def identity(self) -> str:
        """The encoder's and the tokenizer's content, and everything else that decides an embedding."""
        digest = open_checkpoint(self.files["text"]).digest
        return f"{digest}|{digest_files([self.files['tokenizer']])}|{self.dtype}|{self.scheme}|{self.spec.dit.text_len}"

    def missing(self, texts: Sequence[str]) -> list[str]:
        """Those that need the encoder: neither embedded before nor in the cache."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if self.cache is None or not new:
            return new
        identity, shape = self.identity, (1, self.spec.dit.text_len, self.spec.dit.text_dim)
        for text in new:
            found = self.cache.load(identity, text, shape, self.dtype)
            if found is not None:
                self._known[text] = found.to(self.device)
        return [text for text in new if text not in self._known]

    def embed(self, texts: Sequence[str], progress: Callable[[int, int], None]) -> dict[str, Tensor]:
        """[1, text_len, text_dim] by text. `progress(done, wanted)` is called at the start and after each."""
        wanted = list(dict.fromkeys(texts))
        progress(0, len(wanted))
        missing = self.missing(wanted)
        encoder = self._load() if missing else None
        identity = self.identity if self.cache and missing else ""
        for number, text in enumerate(wanted):
            if encoder is not None and text in missing:
                found = encoder.encode([text])
                if self.cache:
                    self.cache.store(identity, text, found)
                self._known[text] = found.to(self.device)
            progress(number + 1, len(wanted))
        return {text: self._known[text] for text in wanted}

    def _load(self) -> TextEncoder:
        self.loads += 1
        return TextEncoder.load(self.spec, self.files, device=self.device, dtype=self.dtype, scheme=self.scheme)
