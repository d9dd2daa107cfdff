"""The transformer: input checks, reuse of text, residual fusion, training, compilation, meta."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from turbort.errors import InputError
from turbort.models.config import DitConfig, Sla
from turbort.models.dit_layers import CrossKV
from turbort.models.guidance import by_noise, concat, guided
from turbort.models.wan_dit import WanDit
from turbort.op import slots

CONFIG = DitConfig(dim=128, ffn_dim=96, heads=1, layers=2, text_dim=16, text_len=6, freq_dim=32)
SPARSE = Sla(topk=0.5, block=(8, 8))
SIZE = (3, 8, 8)


def build(attention: Sla | None = None, config: DitConfig = CONFIG) -> WanDit:
    torch.manual_seed(0)
    model = WanDit(config, attention)
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.05
    return model


def inputs(batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 16, *SIZE, generator=generator)
    return x, torch.full((batch,), 700.0), torch.randn(batch, 6, 16, generator=generator)


def test_a_new_model_predicts_zero_velocity() -> None:
    assert WanDit(CONFIG)(*inputs()).abs().max() == 0


@pytest.mark.parametrize("attention", [None, SPARSE])
def test_residuals_may_be_added_by_the_linear_or_by_the_norm(attention: Sla | None) -> None:
    model = build(attention)
    x, t, text = inputs()
    expected = model(x, t, text)
    used = {path for path, site in slots(model).items() if site.calls}
    assert not any(path.endswith(".fused") for path in used)
    model.residual_fusion = "norm"
    assert torch.allclose(model(x, t, text), expected, atol=1e-5)
    # Everything but the first norm of the first block follows a residual.
    fused = {path for path, site in slots(model).items() if site.calls and path.endswith(".fused")}
    assert len(fused) == 3 * CONFIG.layers - 1 + 1


@pytest.mark.parametrize("attention", [None, SPARSE])
def test_every_parameter_gets_a_gradient(attention: Sla | None) -> None:
    model = build(attention)
    model(*inputs()).square().mean().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    # A new SLA projection is zero but not stuck: its own gradient is not.
    zero = [name for name, parameter in model.named_parameters() if parameter.grad is not None and not parameter.grad.any()]
    assert zero == []


def test_autocast_keeps_the_result() -> None:
    model, sample = build(), inputs()
    exact = model(*sample)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(*sample)
    assert (rounded - exact).norm() / exact.norm() < 0.02
    rounded.float().square().mean().backward()


def test_sla_with_every_block_and_a_zero_projection_is_dense() -> None:
    dense, sparse = build(), build(Sla(topk=1.0, block=(8, 8)))
    weights = sparse.state_dict()
    for name, value in dense.state_dict().items():
        weights[name] = value
    for name in weights:
        if "proj_l" in name:
            weights[name] = torch.zeros_like(weights[name])
    sparse.load_state_dict(weights)
    assert torch.allclose(sparse(*inputs()), dense(*inputs()), atol=1e-5)
    fewer = build(Sla(topk=0.2, block=(8, 8)))
    fewer.load_state_dict(weights)
    assert not torch.allclose(fewer(*inputs()), dense(*inputs()), atol=1e-5)


def test_samples_of_a_batch_do_not_mix() -> None:
    model = build()
    x, t, text = inputs(batch=3)
    together = model(x, t, text)
    for i in range(3):
        assert torch.allclose(together[i : i + 1], model(x[i : i + 1], t[i : i + 1], text[i : i + 1]), atol=1e-5)


def test_equal_times_per_token_are_one_time() -> None:
    model = build()
    x, t, text = inputs()
    assert torch.allclose(model(x, t.expand(1, 48), text), model(x, t, text), atol=1e-5)
    other = t.repeat(1, 48)
    other[:, :16] = 0
    assert not torch.allclose(model(x, other, text), model(x, t, text), atol=1e-3)


def test_inputs_that_do_not_fit_are_refused() -> None:
    model = build()
    x, t, text = inputs()
    with pytest.raises(InputError, match="12 channels"):
        model(x[:, :12], t, text)
    with pytest.raises(InputError, match=r"\(3, 8, 7\)"):
        model(x[..., :7], t, text)
    with pytest.raises(InputError, match="9 times for 48 tokens"):
        model(x, torch.zeros(1, 9), text)
    with pytest.raises(InputError, match="takes no CLIP"):
        model(x, t, text, image=torch.zeros(1, 4, 8))
    image_model = build(
        config=DitConfig(dim=128, ffn_dim=32, heads=1, layers=1, text_dim=16, text_len=6, image_embed=True, image_dim=8)
    )
    with pytest.raises(InputError, match="needs CLIP"):
        image_model(x, t, text)


@pytest.mark.parametrize("attention", [None, SPARSE])
def test_meta_gives_shapes(attention: Sla | None) -> None:
    with torch.device("meta"):
        model = WanDit(CONFIG, attention)
    x, t, text = (value.to("meta") for value in inputs(2))
    assert model(x, t, text).shape == (2, 16, *SIZE)


def test_compiling_gives_one_graph_and_no_recompilation() -> None:
    torch._dynamo.reset()
    model, sample = build(), inputs()
    expected = model(*sample)  # also makes the position tables
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for t in (700.0, 300.0, 100.0):
        compiled(sample[0], torch.full((1,), t), sample[2])
    assert torch.allclose(compiled(*sample), expected, atol=1e-5)
    assert len(graphs) == 1


def test_float32_parameters_are_named() -> None:
    kept = {name for name, _ in build(SPARSE).named_parameters() if any(part in name for part in WanDit.fp32)}
    assert {"time_embedding.0.weight", "time_projection.1.bias", "blocks.0.modulation", "head.modulation"} <= kept
    assert {"blocks.1.norm3.weight", "blocks.0.self_attn.norm_q.weight"} <= kept
    assert not any(".ffn." in name or ".q." in name or "patch" in name for name in kept)


@pytest.mark.parametrize("together", [True, False])
def test_guidance(together: bool) -> None:
    model = build()
    x, t, text = inputs()
    positive, negative = model.encode_text(text), model.encode_text(-text)
    sizes = []

    def predict(x: Tensor, t: float, context: list[CrossKV]) -> Tensor:
        sizes.append(len(x))
        return model(x, torch.full((len(x),), t), context)

    v = guided(predict, positive, negative, 3.0, together=together)(x, 700.0)  # type: ignore[arg-type]
    unconditional = model(x, t, negative)
    assert torch.allclose(v, unconditional + 3.0 * (model(x, t, positive) - unconditional), atol=1e-4)
    assert sizes == ([2] if together else [1, 1])
    sizes.clear()
    assert torch.allclose(guided(predict, positive, negative, 1.0)(x, 700.0), model(x, t, positive), atol=1e-5)  # type: ignore[arg-type]
    assert sizes == [1]


def test_experts_switch_at_the_boundary() -> None:
    velocity = by_noise(lambda x, t: x + 1, lambda x, t: x - 1, 0.875)
    zero = torch.zeros(1)
    assert [float(velocity(zero, t)) for t in (1000.0, 875.0, 874.9, 0.0)] == [1, 1, -1, -1]


@torch.no_grad()
def test_keys_and_values_kept_in_int8_give_nearly_the_same_velocity_in_half_the_memory() -> None:
    model = build()
    x, t, text = inputs(2)
    encoded = model.encode_text(text)
    kept = [block.kept() for block in encoded]
    want, got = model(x, t, encoded), model(x, t, kept)
    assert 0 < float((got - want).norm() / want.norm()) < 0.01
    size, whole = (sum(part.nbytes for part in leaves(blocks)) for blocks in (kept, encoded))
    assert size < 0.3 * whole  # float32 here: a quarter, and a scale per 128 values


@torch.no_grad()
def test_a_guidance_pair_of_kept_keys_and_values_is_one_batch() -> None:
    model = build()
    x, t, text = inputs(2)
    halves = [[block.kept() for block in model.encode_text(text[row : row + 1])] for row in (0, 1)]
    joined = [concat(a, b) for a, b in zip(*halves, strict=True)]
    whole = [block.kept() for block in model.encode_text(text)]
    assert torch.allclose(model(x, t, joined), model(x, t, whole), atol=1e-5)


def leaves(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
