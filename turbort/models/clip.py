"""The CLIP vision transformer (ViT-H/14) that Wan 2.1 image-to-video sees its first frame with.

Parameter names are those of `transformers`' CLIPVisionModel. The last block and the final norm are not run: Wan uses the
tokens that enter the last block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from turbort import ops
from turbort.models.layers import LayerNorm, Linear
from turbort.op import slot

ROLE = "image"
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class ClipConfig:
    """Sizes of the vision transformer: pixels per side of the image and of a patch, blocks that run."""

    dim: int = 1280
    ffn_dim: int = 5120
    heads: int = 16
    layers: int = 31
    image: int = 224
    patch: int = 14
    eps: float = 1e-5


class ClipVision(nn.Module):
    """Images [B, 3, H, W] in [-1, 1] of any size to tokens [B, 1 + (image / patch)^2, dim]."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = nn.ModuleDict(
            {
                "embeddings": Embeddings(config),
                "pre_layrnorm": LayerNorm(config.dim, eps=config.eps, role=ROLE),
                "encoder": nn.ModuleDict({"layers": nn.ModuleList([Block(config) for _ in range(config.layers)])}),
            }
        )

    def forward(self, image: Tensor) -> Tensor:
        parts = self.vision_model
        x: Tensor = parts["pre_layrnorm"](parts["embeddings"](self.prepare(image)))
        for block in cast("nn.ModuleList", cast("nn.ModuleDict", parts["encoder"])["layers"]):
            x = block(x)
        return x

    def prepare(self, image: Tensor) -> Tensor:
        """Bicubic resize to the model's square, then CLIP's normalisation, in the dtype of the weights."""
        size = (self.config.image, self.config.image)
        x = F.interpolate(image.float(), size=size, mode="bicubic", align_corners=False) * 0.5 + 0.5
        mean, std = x.new_tensor(MEAN).view(1, 3, 1, 1), x.new_tensor(STD).view(1, 3, 1, 1)
        return ((x - mean) / std).to(next(self.parameters()).dtype)


class Embeddings(nn.Module):
    """A class token and one token per patch, plus positions."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        side = config.image // config.patch
        self.patch = config.patch
        self.class_embedding = nn.Parameter(torch.randn(config.dim))
        shape = (config.dim, 3, config.patch, config.patch)
        self.patch_embedding = Linear(3 * config.patch**2, config.dim, role=ROLE, bias=False, shape=shape)
        self.position_embedding = Positions(1 + side * side, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, self.patch, stride=self.patch).transpose(1, 2)
        first = self.class_embedding.expand(x.shape[0], 1, -1)
        y: Tensor = torch.cat([first, self.patch_embedding(patches)], dim=1) + self.position_embedding.weight
        return y


class Positions(nn.Module):
    """One learned row per token."""

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count, dim))


class Attention(nn.Module):
    """Attention over all tokens."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_proj = Linear(config.dim, config.dim, role=ROLE)
        self.k_proj = Linear(config.dim, config.dim, role=ROLE)
        self.v_proj = Linear(config.dim, config.dim, role=ROLE)
        self.out_proj = Linear(config.dim, config.dim, role=ROLE)
        self.attention = slot(ops.attention, ROLE)

    def forward(self, h: Tensor, residual: Tensor) -> Tensor:
        q, k, v = (p(h).view(h.shape[0], h.shape[1], self.heads, -1) for p in (self.q_proj, self.k_proj, self.v_proj))
        y: Tensor = self.out_proj(self.attention(q, k, v).flatten(2), residual=residual)
        return y


class Block(nn.Module):
    """x + attention(norm(x)), then x + fc2(gelu(fc1(norm(x)))) with the exact GELU."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.layer_norm1 = LayerNorm(config.dim, eps=config.eps, role=ROLE)
        self.layer_norm2 = LayerNorm(config.dim, eps=config.eps, role=ROLE)
        self.mlp = nn.ModuleDict(
            {"fc1": Linear(config.dim, config.ffn_dim, role=ROLE), "fc2": Linear(config.ffn_dim, config.dim, role=ROLE)}
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.self_attn(self.layer_norm1(x), x)
        y: Tensor = self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.layer_norm2(x))), residual=x)
        return y
