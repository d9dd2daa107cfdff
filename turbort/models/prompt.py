"""Prompts: cleaning as Wan cleans them, and token ids from a `tokenizer.json`. No torch here."""

from __future__ import annotations

import html
import re
import unicodedata
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from turbort.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_QUOTES = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u02bc", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f", '"'),
        "\u3000": " ",
    }
)
# Full-width forms of ASCII and the Latin ligatures, which have one plain spelling each.
_WIDE = re.compile("[\uff01-\uff5e\ufb00-\ufb06]")
_TERMINAL = re.compile("\x1b\\[[0-9;?]*[a-zA-Z]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]")


def clean_prompt(text: str) -> str:
    """The prompt as the text encoder was trained to see it.

    HTML entities are resolved (twice, for doubly escaped text), curly quotes, ligatures and full-width letters get their plain
    form, control characters go, the rest is NFC, and any run of white space is one space. Unlike ftfy, which Wan uses, this
    does not guess at text that was decoded with the wrong character set.
    """
    text = _CONTROL.sub("", _TERMINAL.sub("", text)).translate(_QUOTES)
    text = _WIDE.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    text = html.unescape(html.unescape(unicodedata.normalize("NFC", text)))
    return " ".join(text.split())


class Tokenizer:
    """Token ids of cleaned prompts, cut to `text_len` with the end token kept."""

    def __init__(self, path: Path, text_len: int) -> None:
        self.path = path
        self.text_len = text_len

    @cached_property
    def _backend(self) -> Backend:
        from tokenizers import Tokenizer

        try:
            backend = Tokenizer.from_file(str(self.path))
        except Exception as error:  # the library raises a bare Exception for every kind of bad file
            raise CheckpointError(
                f"cannot read the tokenizer {self.path}: {error}", fix="use the tokenizer.json of the model"
            ) from error
        backend.no_padding()
        backend.enable_truncation(self.text_len)
        return backend

    def ids(self, text: str) -> list[int]:
        """Ids of one prompt, at most `text_len`, ending with the end token."""
        return list(self._backend.encode(clean_prompt(text)).ids)

    @property
    def size(self) -> int:
        """Number of known tokens."""
        return int(self._backend.get_vocab_size())
