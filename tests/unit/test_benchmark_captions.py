"""The benchmark of strength levels draws only captions that the embedded model was trained on."""

import pytest

from benchmarks.adaptive import captions
from turbort.models.spec import get_model


@pytest.mark.parametrize("seed", range(4))
def test_captions_are_in_the_grammar(seed):
    found = captions(24, seed=seed, spec=get_model("tiny"))  # raises SystemExit with the first that is not
    assert sum(" while " in caption for caption in found) == 12
    assert len(set(found)) > 20
