"""The training code: same networks as the runtime's, losses with known values, and stages that run and resume."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from recipes.tiny_shapes import nets, textnet, vaenet
from recipes.tiny_shapes.config import SMALL
from recipes.tiny_shapes.data import tokens, vocabulary_size

S = replace(SMALL, frames=9, edge=64, dim=256, heads=2, layers=2)


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=g))
    return model.eval()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def inputs(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, *S.latent, generator=g),
        torch.rand(batch, generator=g),
        torch.randn(batch, S.text_len, S.text_dim, generator=g),
    )


@pytest.mark.parametrize("topk", [None, 0.1, 1.0])
def test_transformer_is_the_runtimes(topk: float | None) -> None:
    from turbort.models.spec import DitConfig, Sla
    from turbort.models.wan_dit import WanDit

    ours = randomise(nets.Dit(S, sla=topk is not None))
    config = DitConfig(S.dim, S.ffn, S.heads, S.layers, text_dim=S.text_dim, text_len=S.text_len, freq_dim=S.freq_dim)
    theirs = WanDit(config, None if topk is None else Sla(topk)).eval()
    theirs.load_state_dict(ours.state_dict())
    x, t, text = inputs()
    with torch.no_grad():
        assert relative(ours(x, t, text, nets.Mode(topk=topk)), theirs(x, t * 1000, text)) < 1e-5


def test_autoencoder_is_the_runtimes() -> None:
    from turbort.models.spec import VaeConfig
    from turbort.models.wan_vae import WanVae

    ours = randomise(vaenet.Vae(S))
    mean, std = [0.1 * i for i in range(16)], [1 + 0.05 * i for i in range(16)]
    ours.set_statistics(mean, std)
    theirs = WanVae(VaeConfig(S.vae_dim, S.z, S.vae_mult, S.vae_blocks, mean=tuple(mean), std=tuple(std))).eval()
    theirs.load_state_dict(ours.state_dict())
    video = torch.rand(1, 3, 9, 32, 32) * 2 - 1
    with torch.no_grad():
        latents = ours.encode(video)
        assert relative(latents, theirs.encode(video)) < 1e-5
        assert relative(ours.decode(latents), theirs.decode(latents)) < 1e-5


def test_text_encoder_is_transformers(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    vocab = vocabulary_size()
    ours = randomise(textnet.TextEncoder(S, vocab))
    config = transformers.UMT5Config(
        vocab_size=vocab, d_model=S.text_dim, d_kv=S.text_dim // S.text_heads, d_ff=S.text_ffn, num_layers=S.text_layers,
        num_heads=S.text_heads, feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    theirs = transformers.UMT5EncoderModel(config).eval()
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not unexpected
    assert all("embed_tokens" in k for k in missing)
    ids = torch.from_numpy(tokens(["a red circle moves right", "a blue star grows while a red square spins in place"], 32))
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state
        keep = ids != 0
        assert relative(ours(ids)[keep], expected[keep]) < 1e-5
        assert ours(ids)[~keep].abs().max() == 0


@pytest.mark.parametrize("precision", ["w8a8", "w4a8"])
def test_the_recipe_rounds_as_the_runtimes_fake_ops_do(precision):
    """Two forms of one rounding: the recipe's fuses under torch.compile, `turbort.qat` covers every precision."""
    from recipes.tiny_shapes import fakequant
    from turbort.qat import fake_linear

    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(9, 200, generator=generator), torch.randn(24, 200, generator=generator)
    assert torch.equal(fakequant.linear(x, weight, None, precision), fake_linear(x, weight, precision=precision))


def test_every_mode_reaches_the_arithmetic():
    net = randomise(nets.Dit(S, sla=True))
    modes = [nets.Mode(topk=1.0, int8=i, linear=p) for i, p in ((False, None), (True, None), (True, "w8a8"), (True, "w4a8"))]
    with torch.no_grad():
        exact, int8, w8a8, w4a8 = (net(*inputs(), mode) for mode in modes)
    assert 0 < relative(int8, exact) < relative(w8a8, exact) < relative(w4a8, exact) < 0.5
