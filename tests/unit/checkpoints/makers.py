"""Small synthetic checkpoints in every dialect, from compact rules rather than from key lists."""

import torch

from turbort.quant.schemes import quantize

DIM, FFN, HEADS, TEXT = 256, 384, 2, 64
LAYERS = 2


def dit_shapes(*, sla=False, image=False, dim=DIM, ffn=FFN, layers=LAYERS, channels=16, text=TEXT):
    """Names and shapes of a Wan transformer, as in Wan's own files."""

    def linear(name, out, into):
        return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}

    shapes = {"patch_embedding.weight": (dim, channels, 1, 2, 2), "patch_embedding.bias": (dim,)}
    shapes |= linear("text_embedding.0", dim, text) | linear("text_embedding.2", dim, dim)
    shapes |= linear("time_embedding.0", dim, 256) | linear("time_embedding.2", dim, dim)
    shapes |= linear("time_projection.1", 6 * dim, dim)
    for n in range(layers):
        block = f"blocks.{n}"
        shapes[f"{block}.modulation"] = (1, 6, dim)
        for side in ("self_attn", "cross_attn"):
            for part in "qkvo":
                shapes |= linear(f"{block}.{side}.{part}", dim, dim)
            shapes[f"{block}.{side}.norm_q.weight"] = shapes[f"{block}.{side}.norm_k.weight"] = (dim,)
        if sla:
            shapes |= linear(f"{block}.self_attn.attn_op.local_attn.proj_l", 128, 128)
        if image:
            shapes |= linear(f"{block}.cross_attn.k_img", dim, dim) | linear(f"{block}.cross_attn.v_img", dim, dim)
            shapes[f"{block}.cross_attn.norm_k_img.weight"] = (dim,)
        shapes[f"{block}.norm3.weight"] = shapes[f"{block}.norm3.bias"] = (dim,)
        shapes |= linear(f"{block}.ffn.0", ffn, dim) | linear(f"{block}.ffn.2", dim, ffn)
    shapes["head.modulation"] = (1, 2, dim)
    shapes |= linear("head.head", 64, dim)
    if image:
        shapes |= {f"img_emb.proj.0.{leaf}": (1280,) for leaf in ("weight", "bias")}
        shapes |= linear("img_emb.proj.1", 1280, 1280) | linear("img_emb.proj.3", dim, 1280)
        shapes |= {f"img_emb.proj.4.{leaf}": (dim,) for leaf in ("weight", "bias")}
    return shapes


def umt5_shapes(*, dim=32, ffn=48, heads=2, layers=2, vocab=40):
    """Names and shapes of a umT5 encoder, as in Wan's own files."""
    shapes = {"token_embedding.weight": (vocab, dim)}
    for n in range(layers):
        block = f"blocks.{n}"
        shapes |= {f"{block}.{norm}.weight": (dim,) for norm in ("norm1", "norm2")}
        shapes |= {f"{block}.attn.{part}.weight": (dim, dim) for part in "qkvo"}
        shapes |= {f"{block}.ffn.gate.0.weight": (ffn, dim), f"{block}.ffn.fc1.weight": (ffn, dim)}
        shapes |= {f"{block}.ffn.fc2.weight": (dim, ffn), f"{block}.pos_embedding.embedding.weight": (32, heads)}
    return shapes | {"norm.weight": (dim,)}


def fill(shapes, *, seed=0, dtype=torch.bfloat16):
    """Random values for names and shapes."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def is_quantised_linear(name):
    """The ten linears of each block; neither SLA's projection nor anything outside the blocks."""
    inside = name.startswith("blocks.") and name.endswith(".weight")
    return inside and "norm" not in name and "proj_l" not in name and "pos_embedding" not in name


def turbodiffusion(weights, *, quant=False):
    """Wan's weights as TurboDiffusion stores them."""
    stored = dict(weights)
    stored["patch_embedding.weight"] = weights["patch_embedding.weight"].flatten(1)
    if not quant:
        return stored
    for name in filter(is_quantised_linear, weights):
        q = quantize(stored.pop(name), "int8-block128")
        linear = name.removesuffix(".weight")
        stored[f"{linear}.int8_weight"], stored[f"{linear}.scale"] = q.values, q.scales
    return stored


def lightx2v(weights, scheme="int8-channel"):
    """Weights with the linears of the blocks as LightX2V stores them."""
    stored = dict(weights)
    for name in filter(is_quantised_linear, weights):
        q = quantize(weights[name], scheme)
        stored[name], stored[name.removesuffix("weight") + "weight_scale"] = q.values, q.scales
    return stored
