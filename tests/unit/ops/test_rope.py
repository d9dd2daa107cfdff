"""Query/key norm and rotation: a rotation of pairs, nothing else."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import examples
from turbort.errors import InputError
from turbort.ops import qk_norm_rope, rms_norm
from turbort.ops.rope import rotate

few = examples(20)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def angles(length, pairs, seed=9):
    phi = draw(length, pairs, seed=seed) * 3
    return phi.cos(), phi.sin()


@few
@given(st.integers(1, 30), st.integers(1, 4), st.sampled_from([2, 6, 64, 128]), st.integers(0, 1000))
def test_rotation_keeps_lengths_and_angles_between_vectors(length, heads, d, seed):
    cos, sin = angles(length, d // 2, seed)
    a, b = draw(1, length, heads, d, seed=seed), draw(1, length, heads, d, seed=seed + 1)
    ra, rb = rotate(a, cos, sin), rotate(b, cos, sin)
    torch.testing.assert_close((ra * rb).sum(-1), (a * b).sum(-1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rotate(ra, cos, -sin), a, rtol=1e-4, atol=1e-5)


def test_rotation_is_complex_multiplication_of_neighbouring_pairs():
    x = draw(2, 5, 3, 8)
    cos, sin = angles(5, 4)
    turned = torch.view_as_complex(x.view(2, 5, 3, 4, 2)) * torch.complex(cos, sin)[None, :, None]
    torch.testing.assert_close(rotate(x, cos, sin), torch.view_as_real(turned).flatten(-2))


def test_angle_tables_may_differ_per_clip():
    x, (cos, sin) = draw(2, 5, 3, 8), angles(5, 4)
    both = torch.stack((cos, cos.flip(0))), torch.stack((sin, sin.flip(0)))
    y = rotate(x, *both)
    torch.testing.assert_close(y[1:], rotate(x[1:], cos.flip(0), sin.flip(0)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_runs_over_the_full_width_before_the_split(dtype):
    x, weight, (cos, sin) = draw(2, 5, 24).to(dtype), draw(24, seed=1), angles(5, 4)
    y = qk_norm_rope(x, weight, cos, sin, heads=3)
    assert y.shape == (2, 5, 3, 8)
    assert y.dtype == dtype
    expected = rotate(rms_norm(x.float(), weight).view(2, 5, 3, 8), cos, sin).to(dtype)
    assert torch.equal(y, expected)


def test_a_width_that_does_not_split_is_refused():
    with pytest.raises(InputError, match="width 10 does not split into 3 heads"):
        qk_norm_rope(draw(1, 2, 10), draw(10), *angles(2, 2), heads=3)
