"""The transformer and both VAEs against diffusers' implementations with the same weights, in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from turbort.checkpoints.diffusers import dit_to_wan, vae_to_wan
from turbort.models.config import DitConfig, VaeConfig
from turbort.models.rope import rope_tables
from turbort.models.vae import build_vae
from turbort.models.wan_dit import WanDit
from turbort.models.wan_vae import WanVae, decode_clip

diffusers = pytest.importorskip("diffusers")

TOLERANCE = 1e-4


def error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference relative to the largest value."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """No weight keeps a value that would hide a mistake: norms leave 1, biases leave 0."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        spread = 0.3 if parameter.ndim == 1 or parameter.squeeze().ndim == 1 else 0.04
        parameter.data = torch.randn(parameter.shape, generator=generator) * spread + (
            1.0 if bool((parameter == 1).all()) else 0.0
        )
    return module.eval().requires_grad_(False)


def pair(config: DitConfig) -> tuple[WanDit, Any]:
    theirs = shaken(
        diffusers.WanTransformer3DModel(
            num_attention_heads=config.heads,
            attention_head_dim=config.head_dim,
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            text_dim=config.text_dim,
            freq_dim=config.freq_dim,
            ffn_dim=config.ffn_dim,
            num_layers=config.layers,
            cross_attn_norm=True,
            image_dim=config.image_dim if config.image_embed else None,
            added_kv_proj_dim=config.dim if config.image_embed else None,
        )
    )
    ours = WanDit(config).eval().requires_grad_(False)
    state = theirs.state_dict()
    ours.load_state_dict({dit_to_wan(name): value for name, value in state.items()})
    return ours, theirs


T2V = DitConfig(dim=256, ffn_dim=320, heads=2, layers=3, text_dim=48, text_len=20, freq_dim=64)
SMALL_HEADS = DitConfig(dim=120, ffn_dim=64, heads=3, layers=2, text_dim=16, text_len=5, freq_dim=32)
I2V = DitConfig(
    dim=256, ffn_dim=192, heads=2, layers=2, in_channels=36, text_dim=32, text_len=512, image_embed=True, image_dim=40
)
I2V_22 = DitConfig(dim=256, ffn_dim=192, heads=2, layers=2, in_channels=36, text_dim=32, text_len=9)


@pytest.mark.parametrize("fusion", ["linear", "norm"])
@pytest.mark.parametrize(("config", "size"), [(T2V, (3, 10, 6)), (T2V, (1, 2, 14)), (SMALL_HEADS, (5, 6, 2))])
def test_text_to_video(config: DitConfig, size: tuple[int, int, int], fusion: str) -> None:
    ours, theirs = pair(config)
    ours.residual_fusion = fusion  # type: ignore[assignment]
    x = torch.randn(2, config.in_channels, *size)
    t, text = torch.tensor([987.65, 3.0]), torch.randn(2, config.text_len, config.text_dim)
    expected = theirs(x, t, text).sample
    assert error(ours(x, t, text), expected) < TOLERANCE
    assert error(ours(x, t, ours.encode_text(text)), expected) < TOLERANCE


def test_image_to_video_with_image_tokens() -> None:
    ours, theirs = pair(I2V)
    x, condition = torch.randn(1, 16, 2, 6, 10), torch.randn(1, 20, 2, 6, 10)
    t, text, image = torch.tensor([421.5]), torch.randn(1, 512, 32), torch.randn(1, 257, 40)
    expected = theirs(torch.cat([x, condition], dim=1), t, text, image).sample
    assert error(ours(x, t, text, image=image, condition=condition), expected) < TOLERANCE
    assert error(ours(x, t, ours.encode_text(text, image), condition=condition), expected) < TOLERANCE


def test_image_to_video_without_image_tokens() -> None:
    ours, theirs = pair(I2V_22)
    x, condition, text = torch.randn(1, 16, 3, 4, 6), torch.randn(1, 20, 3, 4, 6), torch.randn(1, 9, 32)
    expected = theirs(torch.cat([x, condition], dim=1), torch.tensor([900.0]), text).sample
    assert error(ours(x, torch.tensor([900.0]), text, condition=condition), expected) < TOLERANCE


def test_times_per_token() -> None:
    ours, theirs = pair(T2V)
    x, text = torch.randn(1, 16, 3, 4, 6), torch.randn(1, 20, 48)
    t = torch.rand(1, 3 * 2 * 3) * 1000
    assert error(ours(x, t, text), theirs(x, t, text).sample) < TOLERANCE


@pytest.mark.parametrize(("grid", "head_dim"), [((21, 30, 52), 128), ((3, 5, 7), 128), ((2, 1, 9), 40), ((900, 1, 1), 128)])
def test_rope_tables(grid: tuple[int, int, int], head_dim: int) -> None:
    from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

    cos, sin = WanRotaryPosEmbed(head_dim, (1, 2, 2), 1024)(torch.empty(1, 16, grid[0], 2 * grid[1], 2 * grid[2]))
    ours = rope_tables(grid, head_dim)
    assert ours[0].dtype == torch.float32
    assert (ours[0] - cos[0, :, 0, 0::2]).abs().max() < 1e-6
    assert (ours[1] - sin[0, :, 0, 1::2]).abs().max() < 1e-6


VAE_21 = VaeConfig(base_dim=8, z_dim=4, res_blocks=1, mean=(0.1, -0.2, 0.3, 0.4), std=(1.5, 0.7, 1.1, 2.0))
VAE_21_DEEP = VaeConfig(base_dim=8, z_dim=4, res_blocks=2, dim_mult=(1, 2, 4, 4), mean=VAE_21.mean, std=VAE_21.std)
VAE_22 = VaeConfig(
    base_dim=8,
    decoder_base_dim=16,
    z_dim=4,
    res_blocks=2,
    stride=(4, 16, 16),
    residual=True,
    pixel_patch=2,
    mean=VAE_21.mean,
    std=VAE_21.std,
)


def vae_pair(config: VaeConfig) -> tuple[WanVae, Any]:
    channels = 3 * config.pixel_patch**2
    theirs = shaken(
        diffusers.AutoencoderKLWan(
            base_dim=config.base_dim,
            decoder_base_dim=config.decoder_base_dim,
            z_dim=config.z_dim,
            dim_mult=list(config.dim_mult),
            num_res_blocks=config.res_blocks,
            temperal_downsample=list(config.temporal_downsample),
            latents_mean=list(config.mean),
            latents_std=list(config.std),
            is_residual=config.residual,
            in_channels=channels,
            out_channels=channels,
            patch_size=config.pixel_patch if config.pixel_patch > 1 else None,
            scale_factor_spatial=config.stride[1],
        )
    )
    ours = build_vae(config).eval().requires_grad_(False)
    state = theirs.state_dict()
    names = vae_to_wan(list(state))
    ours.load_state_dict({names[name]: value for name, value in state.items()})
    return ours, theirs


@pytest.mark.parametrize("config", [VAE_21, VAE_21_DEEP, VAE_22], ids=["2.1", "2.1-deep", "2.2"])
@pytest.mark.parametrize("frames", [1, 5, 13])
def test_vae(config: VaeConfig, frames: int) -> None:
    ours, theirs = vae_pair(config)
    video = torch.rand(1, 3, frames, 32, 48) * 2 - 1
    expected = theirs.encode(video).latent_dist
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (config.mean, config.std))
    assert error(ours.moments(video)[0], expected.mean) < TOLERANCE
    assert error(ours.moments(video)[1], expected.logvar) < TOLERANCE
    latents = (expected.mean - mean) / std
    assert error(ours.encode(video), latents) < TOLERANCE
    assert error(torch.cat(list(ours.encode_stream(video)), dim=2), latents) < TOLERANCE

    z = torch.randn(latents.shape)
    pixels = theirs.decode(z * std + mean).sample
    assert float(pixels.abs().mean()) > 0.05  # something is there to compare, and not all of it clamped
    assert float((pixels.abs() == 1).float().mean()) < 0.9
    assert error(ours.decode(z).clamp(-1, 1), pixels) < TOLERANCE
    assert error(decode_clip(ours, z), pixels) < TOLERANCE
