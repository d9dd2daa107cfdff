"""Every quoted constraint stands in the documents of the torch-npu that is installed, under the op it is quoted for."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from turbort_ascend.rules import QUOTES

FROM_PAGES = {key: quote for key, quote in QUOTES.items() if quote.source.endswith("_op_plugin_docs.py")}


@pytest.fixture(scope="module")
def pages() -> str:
    spec = find_spec("torch_npu")
    if spec is None or spec.origin is None:
        pytest.skip("torch-npu is not installed: `make ascend-venv`")
    return (Path(spec.origin).parent / "_op_plugin_docs.py").read_text(encoding="utf-8")


def squeezed(text: str) -> str:
    """Without white space: the pages break lines inside sentences."""
    return "".join(text.split())


@pytest.mark.parametrize("key", FROM_PAGES)
def test_the_vendor_says_so(key: str, pages: str) -> None:
    quote = FROM_PAGES[key]
    start = pages.index(f'"{quote.op}"')
    end = pages.find("_add_torch_npu_docstr", start)
    assert squeezed(quote.text) in squeezed(pages[start:end])
