"""The VAEs: streaming equals the whole clip, causality, shapes, training, bounded memory."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.properties import examples
from turbort.errors import InputError
from turbort.models.config import VaeConfig
from turbort.models.vae import build_vae
from turbort.models.vae_layers import Stream
from turbort.models.wan_vae import WanVae, decode_clip

WAN_21 = VaeConfig(base_dim=4, z_dim=4, res_blocks=1, mean=(0.1, -0.2, 0.3, 0.4), std=(1.5, 0.7, 1.1, 2.0))
WAN_22 = VaeConfig(base_dim=4, decoder_base_dim=8, z_dim=4, res_blocks=1, stride=(4, 16, 16), residual=True, pixel_patch=2)
EARLY = VaeConfig(base_dim=4, z_dim=4, res_blocks=1, temporal_downsample=(True, True, False))
CONFIGS = {"2.1": WAN_21, "2.2": WAN_22, "early": EARLY}


def build(name: str) -> WanVae:
    torch.manual_seed(0)
    return build_vae(CONFIGS[name]).eval()


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() < 1e-5 * (1 + b.abs().max()))


@pytest.mark.parametrize("name", CONFIGS)
@examples(4)
@given(frames=st.integers(1, 6), chunk=st.integers(1, 4))
@torch.no_grad()
def test_decoding_in_chunks_is_decoding_whole(name: str, frames: int, chunk: int) -> None:
    vae = build(name)
    latents = torch.randn(1, 4, frames, 2, 3)
    whole = vae.decode(latents)
    _, rows, columns = vae.config.stride
    assert whole.shape == (1, 3, 1 + 4 * (frames - 1), 2 * rows, 3 * columns)
    assert close(decode_clip(vae, latents, chunk=chunk), whole.clamp(-1, 1))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("frames", [1, 5, 17])
@torch.no_grad()
def test_encoding_in_chunks_is_encoding_whole(name: str, frames: int) -> None:
    vae = build(name)
    video = torch.rand(1, 3, frames, 32, 16) * 2 - 1
    whole = vae.encode(video)
    assert whole.shape[2] == 1 + (frames - 1) // 4
    parts = list(vae.encode_stream(video))
    assert [part.shape[2] for part in parts] == [1] * len(parts)
    assert close(torch.cat(parts, dim=2), whole)


@torch.no_grad()
def test_a_stream_may_be_fed_unevenly() -> None:
    vae = build("2.1")
    latents = torch.randn(1, 4, 6, 2, 2)
    parts = list(vae.decode_stream(iter(torch.split(latents, [1, 3, 2], dim=2))))
    assert [part.shape[2] for part in parts] == [1, 12, 8]
    assert close(torch.cat(parts, dim=2), vae.decode(latents).clamp(-1, 1))


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_no_frame_depends_on_the_future(name: str) -> None:
    vae = build(name)
    latents = torch.randn(1, 4, 4, 2, 2)
    changed = latents.clone()
    changed[:, :, 2:] += 1
    a, b = vae.decode(latents), vae.decode(changed)
    assert torch.equal(a[:, :, :5], b[:, :, :5])
    assert not torch.allclose(a[:, :, 5], b[:, :, 5])


@torch.no_grad()
def test_memory_of_a_stream_does_not_grow() -> None:
    vae = build("2.1")
    stream = Stream()
    held = []
    for _ in range(6):
        vae._decode(torch.randn(1, 4, 1, 2, 2), stream)
        stream.first = False
        held.append(sum(frames.untyped_storage().nbytes() for frames in stream.frames.values()))
    assert held[2] == held[-1]
    assert all(b >= a for a, b in pairwise(held))
    assert max(frames.shape[2] for frames in stream.frames.values()) == 2


def test_normalisation_is_undone() -> None:
    vae = build("2.1")
    latents = torch.randn(2, 4, 3, 2, 2)
    assert torch.allclose(vae.normalize(vae.denormalize(latents)), latents, atol=1e-5)
    assert torch.allclose(vae.denormalize(torch.zeros_like(latents))[0, :, 0, 0, 0], torch.tensor(WAN_21.mean))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    vae = build(name)
    video = torch.rand(1, 3, 9, 32, 32) * 2 - 1
    mean, log_variance = vae.moments(video)
    loss = vae.decode(vae.normalize(mean)).square().mean() + log_variance.square().mean()
    loss.backward()
    assert [n for n, p in vae.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("frames", "height", "width", "fix"),
    [(4, 16, 16, "use 1 frames of 16x16"), (5, 12, 16, "use 5 frames of 16x8"), (5, 16, 9, "use 5 frames of 8x16")],
)
def test_sizes_that_do_not_fit_are_refused(frames: int, height: int, width: int, fix: str) -> None:
    with pytest.raises(InputError, match=f"{frames} frames of {width}x{height}") as caught:
        build("2.1").encode(torch.zeros(1, 3, frames, height, width))
    assert caught.value.fix == fix


def test_bfloat16_runs_in_bfloat16() -> None:
    vae = build("2.1").to(torch.bfloat16)
    with torch.no_grad():
        assert decode_clip(vae, torch.randn(1, 4, 2, 2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_compiled_decoder_recompiles_only_for_the_first_chunks() -> None:
    torch._dynamo.reset()
    short = VaeConfig(base_dim=4, z_dim=4, res_blocks=1, dim_mult=(1, 2), temporal_downsample=(True,), stride=(2, 2, 2))
    vae = build_vae(short).eval().requires_grad_(False)
    latents = torch.randn(1, 4, 5, 2, 2)
    expected = decode_clip(vae, latents)
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    vae.decoder.compile(backend=backend, fullgraph=True)
    assert close(decode_clip(vae, latents), expected)
    after_one = len(graphs)
    assert close(decode_clip(vae, latents), expected)
    assert len(graphs) == after_one == 3  # the first frame, the second and all later ones
