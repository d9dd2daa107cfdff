"""The models turbort knows: sizes, checkpoint files and sampling defaults. No torch here.

Numbers are those of Wan's configuration files (github.com/Wan-Video/Wan2.1, Wan2.2) and, for the distilled models,
of TurboDiffusion's inference scripts (github.com/thu-ml/TurboDiffusion).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from turbort.errors import unknown
from turbort.models.config import (
    Defaults,
    DitConfig,
    ModelSpec,
    Preset,
    SamplerName,
    Sla,
    Task,
    TextConfig,
    VaeConfig,
    frozen,
)
from turbort.models.tiny import NAME as TINY
from turbort.models.tiny import read_spec, tiny_spec
from turbort.models.wan_stats import NEGATIVE_PROMPT, VAE_21_MEAN, VAE_21_STD, VAE_22_MEAN, VAE_22_STD

__all__ = [
    "MODELS",
    "Defaults",
    "DitConfig",
    "ModelSpec",
    "Preset",
    "SamplerName",
    "Sla",
    "Task",
    "TextConfig",
    "VaeConfig",
    "get_model",
    "tiny_spec",
]

SIZE_1B = DitConfig(dim=1536, ffn_dim=8960, heads=12, layers=30)
SIZE_14B = DitConfig(dim=5120, ffn_dim=13824, heads=40, layers=40)
SIZE_5B = DitConfig(dim=3072, ffn_dim=14336, heads=24, layers=30, in_channels=48, out_channels=48, token_time=True)
VAE_21 = VaeConfig(mean=VAE_21_MEAN, std=VAE_21_STD)
VAE_22 = VaeConfig(
    base_dim=160,
    decoder_base_dim=256,
    z_dim=48,
    stride=(4, 16, 16),
    mean=VAE_22_MEAN,
    std=VAE_22_STD,
    residual=True,
    pixel_patch=2,
)
UMT5_XXL = TextConfig()
SLA = Sla(topk=0.1, block=(64, 128))
P480 = Defaults(width=832, height=480, frames=81, fps=16)
P720 = Defaults(width=1280, height=720, frames=81, fps=16)
RCM = Preset(steps=4, sigma_max=80.0)

_DIT = ("diffusion_pytorch_model*.safetensors", "*.pth")
_SHARED: Mapping[str, tuple[str, ...]] = {
    "vae": ("Wan2.1_VAE.pth", "Wan2.1_VAE.safetensors"),
    "text": ("models_t5_umt5-xxl-enc-bf16.pth", "text_encoder/*.safetensors"),
    "tokenizer": ("google/umt5-xxl/tokenizer.json", "tokenizer/tokenizer.json", "tokenizer.json"),
}
_CLIP = ("models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth", "image_encoder/*.safetensors")
_EXPERTS = {
    "high": ("high_noise_model/diffusion_pytorch_model*.safetensors", "*high*.pth"),
    "low": ("low_noise_model/diffusion_pytorch_model*.safetensors", "*low*.pth"),
}


def _unipc(steps: int, guidance: float, shift: float, guidance_low: float | None = None) -> Preset:
    return Preset(steps=steps, guidance=guidance, shift=shift, guidance_low=guidance_low)


_WAN = (
    ModelSpec(
        name="wan2.1-t2v-1.3b",
        title="Wan 2.1 text-to-video 1.3B",
        dit=replace(SIZE_1B, sla=SLA),
        vae=VAE_21,
        text=UMT5_XXL,
        task="t2v",
        defaults=P480,
        presets=frozen(rcm=RCM, unipc=_unipc(50, 6.0, 8.0)),
        sampler="rcm",
        files={"dit": ("TurboWan2.1-T2V-1.3B-480P*.pth", *_DIT), **_SHARED},
        repos={"base": "Wan-AI/Wan2.1-T2V-1.3B", "turbo": "TurboDiffusion/TurboWan2.1-T2V-1.3B-480P"},
        negative_prompt=NEGATIVE_PROMPT,
    ),
    ModelSpec(
        name="wan2.1-t2v-14b",
        title="Wan 2.1 text-to-video 14B",
        dit=replace(SIZE_14B, sla=SLA),
        vae=VAE_21,
        text=UMT5_XXL,
        task="t2v",
        defaults=P480,
        presets=frozen(rcm=RCM, unipc=_unipc(50, 5.0, 5.0)),
        sampler="rcm",
        files={"dit": ("TurboWan2.1-T2V-14B-*.pth", *_DIT), **_SHARED},
        repos={"base": "Wan-AI/Wan2.1-T2V-14B", "turbo": "TurboDiffusion/TurboWan2.1-T2V-14B-480P"},
        negative_prompt=NEGATIVE_PROMPT,
    ),
    ModelSpec(
        name="wan2.1-i2v-14b",
        title="Wan 2.1 image-to-video 14B",
        dit=replace(SIZE_14B, in_channels=36, image_embed=True),
        vae=VAE_21,
        text=UMT5_XXL,
        task="i2v",
        defaults=P480,
        presets=frozen(unipc=_unipc(40, 5.0, 3.0)),
        sampler="unipc",
        files={"dit": _DIT, **_SHARED, "image": _CLIP},
        repos={"base": "Wan-AI/Wan2.1-I2V-14B-480P"},
        negative_prompt=NEGATIVE_PROMPT,
    ),
    ModelSpec(
        name="wan2.2-t2v-a14b",
        title="Wan 2.2 text-to-video A14B (two experts)",
        dit=SIZE_14B,
        vae=VAE_21,
        text=UMT5_XXL,
        task="t2v",
        defaults=P720,
        presets=frozen(unipc=_unipc(40, 4.0, 12.0, guidance_low=3.0)),
        sampler="unipc",
        experts=("high", "low"),
        boundary=0.875,
        files={**_EXPERTS, **_SHARED},
        repos={"base": "Wan-AI/Wan2.2-T2V-A14B"},
        negative_prompt=NEGATIVE_PROMPT,
    ),
    ModelSpec(
        name="wan2.2-i2v-a14b",
        title="Wan 2.2 image-to-video A14B (two experts)",
        dit=replace(SIZE_14B, in_channels=36, sla=SLA),
        vae=VAE_21,
        text=UMT5_XXL,
        task="i2v",
        defaults=P720,
        presets=frozen(rcm=replace(RCM, sigma_max=200.0), unipc=_unipc(40, 3.5, 5.0, guidance_low=3.5)),
        sampler="rcm",
        experts=("high", "low"),
        boundary=0.9,
        files={**_EXPERTS, **_SHARED},
        repos={"base": "Wan-AI/Wan2.2-I2V-A14B", "turbo": "TurboDiffusion/TurboWan2.2-I2V-A14B-720P"},
        negative_prompt=NEGATIVE_PROMPT,
    ),
    ModelSpec(
        name="wan2.2-ti2v-5b",
        title="Wan 2.2 text-and-image-to-video 5B",
        dit=SIZE_5B,
        vae=VAE_22,
        text=UMT5_XXL,
        task="t2v",
        defaults=Defaults(width=1280, height=704, frames=121, fps=24),
        presets=frozen(unipc=_unipc(50, 5.0, 5.0)),
        sampler="unipc",
        files={"dit": _DIT, **_SHARED, "vae": ("Wan2.2_VAE.pth", "Wan2.2_VAE.safetensors")},
        repos={"base": "Wan-AI/Wan2.2-TI2V-5B"},
        negative_prompt=NEGATIVE_PROMPT,
    ),
)


class _Models(Mapping[str, ModelSpec]):
    """Specs by name; the tiny model's file is read when it is first asked for, so that importing this costs nothing."""

    def __init__(self) -> None:
        self._wan = {spec.name: spec for spec in _WAN}

    def __getitem__(self, name: str) -> ModelSpec:
        return tiny_spec() if name == TINY else self._wan[name]

    def __iter__(self) -> Iterator[str]:
        return iter((TINY, *self._wan))

    def __len__(self) -> int:
        return 1 + len(self._wan)


MODELS: Mapping[str, ModelSpec] = _Models()


def get_model(name: str, models: Mapping[str, ModelSpec] = MODELS) -> ModelSpec:
    """The spec called `name`, or the one in a folder with a `model.yaml`; InputError with the nearest names otherwise."""
    if name in models:
        return models[name]
    folder = Path(name)
    if (folder / "model.yaml").is_file():
        return read_spec(folder / "model.yaml")
    raise unknown("model", name, models, fix="`turbort models` lists them; a folder with a model.yaml works too")
