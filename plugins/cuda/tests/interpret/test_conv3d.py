"""The Triton convolution and the room in front of its input, against the reference."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed; `pip install triton` brings the interpreter")

from turbort_cuda.configs import conv_class, row
from turbort_cuda.kernels import conv3d, room, vae

from turbort import ops
from turbort.errors import InputError
from turbort.models.vae_layers import ResidualBlock, Stream, name_streams

PADDING = (1, 1, 1)
TILE = {"BH": 4, "BW": 8, "K": 32, "N1": 32, "N2": 0, "stages": 1, "warps": 4, "tma": True}


def _draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).half()


def _nmse(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want.double()).square().sum() / want.double().square().sum())


def _error(c: int, o: int, t: int, h: int, w: int, *, batch: int = 1, cached: int = 2, **config: object) -> float:
    x, bias = _draw(batch, c, t, h, w), _draw(o, seed=1)
    weight = _draw(o, c, 3, 3, 3, seed=2) * (27 * c) ** -0.5
    cache = _draw(batch, c, cached, h, w, seed=3) if cached else None
    got = conv3d.causal_conv3d(x, weight, bias, cache=cache, padding=PADDING, config={**TILE, **config})
    assert got.is_contiguous(memory_format=torch.channels_last_3d)
    wide = None if cache is None else cache.double()
    return _nmse(got, ops.causal_conv3d(x.double(), weight.double(), bias.double(), cache=wide, padding=PADDING))


@pytest.mark.parametrize("tma", [False, True])
@pytest.mark.parametrize("swap", [False, True])
def test_tiles_that_do_not_divide_the_frame(tma: bool, swap: bool) -> None:
    assert _error(32, 40, 1, 5, 11, tma=tma, swap=swap) < 1e-6


@pytest.mark.parametrize(("cached", "t"), [(0, 3), (1, 1), (2, 1)])
def test_pasts_of_any_length(cached: int, t: int) -> None:
    assert _error(16, 3, t, 3, 5, cached=cached, N1=16) < 1e-6


@pytest.mark.parametrize(("group", "swap", "tma"), [(2, True, True), (2, False, False), (4, False, True)])
def test_groups_of_frames_that_do_not_divide_the_clip(group: int, swap: bool, tma: bool) -> None:
    """5 frames in groups of 2 and 4, two clips: a group must not write into the next clip."""
    assert _error(16, 6, 5, 3, 4, batch=2, N1=16, group=group, swap=swap, tma=tma) < 1e-6


def test_programs_that_walk_over_tiles() -> None:
    """More tiles than programs, in every direction: outputs, columns, frames, rows, clips."""
    assert _error(16, 40, 2, 5, 9, batch=2, swap=True, flatten=True) < 1e-6


@pytest.mark.parametrize("tail", [False, True])
def test_96_inputs_in_chunks_and_96_outputs_in_two_parts(tail: bool) -> None:
    assert _error(96, 96, 1, 3, 4, N1=64, N2=32, K=64, tail=tail) < 1e-6


def test_inputs_that_no_descriptor_can_address() -> None:
    assert _error(3, 20, 1, 5, 4) < 1e-6


def test_wide_inputs_and_the_shipped_configuration() -> None:
    """16 -> 384, the decoder's first convolution, as the table has it for the interpreter."""
    assert _error(16, 384, 1, 3, 4, **row("conv3d", 0, conv_class(384))) < 1e-6


def test_what_it_does_not_compute_is_refused() -> None:
    x, weight = torch.zeros(1, 16, 2, 4, 4).half(), torch.zeros(16, 16, 3, 1, 1).half()
    with pytest.raises(InputError, match=r"3, 1, 1"):
        conv3d.causal_conv3d(x, weight, padding=(1, 0, 0))


def test_a_weight_changed_in_place_is_laid_out_again() -> None:
    x, weight = _draw(1, 16, 1, 3, 4), _draw(16, 16, 3, 3, 3, seed=2)
    before = conv3d.causal_conv3d(x, weight, padding=PADDING, config=TILE)
    weight.mul_(2)
    assert _nmse(conv3d.causal_conv3d(x, weight, padding=PADDING, config=TILE), before * 2) < 1e-6


def _normed(batch: int = 1) -> torch.Tensor:
    return vae.vae_norm_silu(_draw(batch, 8, 3, 4, 5), torch.ones(8))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("cached", [0, 1, 2, 3])
def test_the_past_goes_into_the_room(batch: int, cached: int) -> None:
    x, cache = _normed(batch), _draw(batch, 8, cached, 4, 5, seed=4) if cached else None
    kept = x.clone()
    storage = x.untyped_storage().data_ptr()
    seen = room.joined(x, cache, 2)
    assert seen.untyped_storage().data_ptr() == storage
    assert torch.equal(seen, torch.cat((ops.conv.front_frames(kept, cache, 2), kept), dim=2))
    assert torch.equal(x, kept)


def test_frames_before_a_view_belong_to_somebody() -> None:
    """A slice of a clip has the offset and the strides of a tensor with room."""
    clip = _draw(1, 8, 5, 4, 5).contiguous(memory_format=torch.channels_last_3d)
    whole, view = clip.clone(), clip[:, :, 2:]
    like = room.with_room(view)
    assert (view.storage_offset(), view.stride()) == (like.storage_offset(), like.stride())
    room.joined(view, None, 2)
    assert torch.equal(clip, whole)


def test_views_of_a_tensor_with_room_have_none() -> None:
    x = _normed()
    past = _draw(1, 8, 2, 4, 5, seed=4)
    room.joined(x, past, 2)
    assert x._base is not None
    written = x._base[:, :2].clone()
    seen = room.joined(x[:], None, 2)
    assert seen.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    assert torch.equal(x._base[:, :2], written)


def test_room_is_used_once() -> None:
    """What the first convolution reads must not change, even where it still waits for its turn."""
    x = _normed()
    first = room.joined(x, _draw(1, 8, 2, 4, 5, seed=4), 2)
    kept = first.clone()
    second = room.joined(x, None, 2)
    assert torch.equal(first, kept)
    assert not second[:, :, :2].any()
    assert torch.equal(second[:, :, 2:], x)


def test_a_tensor_that_shows_something_else_has_no_room() -> None:
    x, other = _normed(), _draw(1, 8, 3, 4, 5, seed=5)
    x.data = other
    assert torch.equal(room.joined(x, None, 2)[:, :, 2:], other)


def test_another_number_of_frames_is_copied() -> None:
    x = _normed()
    assert room.joined(x, None, 4).shape[2] == 7


@pytest.mark.parametrize("convolve", [vae.causal_conv3d, conv3d.causal_conv3d])
def test_chunks_of_a_residual_block_use_the_room(convolve: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clip in chunks is the clip in one piece, and no activation is copied to put its past in front."""
    block = ResidualBlock(16, 16).half().requires_grad_(False)
    name_streams(block)
    for name, module in block.named_modules():
        if hasattr(module, "op"):
            module.op.bind(vae.vae_norm_silu if name.endswith(("0", "3")) else convolve, provider="test", precision="fp16")
    copies = []
    monkeypatch.setattr(room, "joined_inner", lambda x, *rest: copies.append(x.shape) or ops.conv.joined_inner(x, *rest))
    x, stream = _draw(1, 16, 4, 3, 5), Stream()
    whole = block(x)
    parts = []
    for chunk in x.split((1, 2, 1), dim=2):
        parts.append(block(chunk, stream))
        stream.first = False
    assert _nmse(torch.cat(parts, dim=2), whole) < 1e-6
    assert copies == []
