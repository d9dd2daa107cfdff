"""VAE tiles: they cover everything, blend without seams, and one tile is the whole picture."""

from itertools import pairwise

import pytest
import torch

from turbort.models.config import VaeConfig
from turbort.models.vae import build_vae
from turbort.tiles import decode_tiles, ramp, spans


@pytest.mark.parametrize(("length", "tile"), [(4, 8), (8, 8), (9, 8), (60, 32), (104, 32), (17, 2), (5, 4)])
def test_spans_cover_and_overlap(length, tile):
    found = spans(length, tile)
    assert (found[0][0], found[-1][1]) == (0, length)
    for (_, end), (start, _) in pairwise(found):
        assert end - start >= max(1, tile // 4)
    total = torch.zeros(length * 8)
    for span in found:
        total[span[0] * 8 : span[1] * 8] += ramp(span, length, 8, tile)
    assert total.min() > 0


class Nearest:
    """Stands in for a VAE: every latent value becomes 8x8 pixels, so any weighted mean of tiles is the whole."""

    config = VaeConfig(stride=(1, 8, 8))

    def decode_stream(self, latents, *, chunk):
        for part in torch.split(latents, chunk, dim=2):
            yield part[:, :3].repeat_interleave(8, 3).repeat_interleave(8, 4)


def test_blending_is_a_weighted_mean():
    latents = torch.randn(1, 3, 3, 12, 20)
    *steps, (done, total, video) = decode_tiles(Nearest(), latents, (48, 64), 2)
    assert (done, total) == (9, 9)
    assert [step[:2] for step in steps] == [(n, 9) for n in range(1, 10)]
    assert torch.allclose(video, latents[0].repeat_interleave(8, 2).repeat_interleave(8, 3), atol=1e-5)


def test_one_tile_is_the_whole_picture():
    torch.manual_seed(0)
    vae = build_vae(VaeConfig(base_dim=8, res_blocks=1)).requires_grad_(False).eval()
    latents = torch.randn(1, 16, 2, 4, 4)
    whole = torch.cat(list(vae.decode_stream(latents)), dim=2)[0]
    *_, (_, _, video) = decode_tiles(vae, latents, (256, 256), 1)
    assert torch.allclose(video, whole, atol=1e-6)
