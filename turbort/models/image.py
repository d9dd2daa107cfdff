"""Image conditions: what an image-to-video transformer is given besides noise and text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from turbort.checkpoints import open_checkpoint
from turbort.errors import CheckpointError
from turbort.models.clip import ClipConfig, ClipVision
from turbort.models.wan_vae import WanVae
from turbort.quant.qtensor import QTensor

MASK_CHANNELS = 4
Read = Callable[[], Tensor | QTensor]


def image_condition(vae: WanVae, image: Tensor, frames: int) -> Tensor:
    """The extra channels of image-to-video, [B, 4 + z, T, h, w]: a mask that is 1 in the first latent frame, then latents.

    image [B, 3, H, W] in [-1, 1]; the latents are those of a clip of `frames` frames that shows the image first and is
    zero (mid-grey) afterwards. Pass the result as `condition=` to the transformer.
    """
    rest = image.new_zeros(*image.shape[:2], frames - 1, *image.shape[2:])
    latents = torch.cat(list(vae.encode_stream(torch.cat([image.unsqueeze(2), rest], dim=2))), dim=2)
    mask = latents.new_zeros(latents.shape[0], MASK_CHANNELS, *latents.shape[2:])
    mask[:, :, 0] = 1.0
    return torch.cat([mask, latents], dim=1)


def hold_first_frame(x: Tensor, first: Tensor) -> Tensor:
    """Latents whose first frame is the image's own, as TI2V-5B sees them; x [B, z, T, h, w], first [B, z, 1, h, w]."""
    return torch.cat([first.to(x.dtype), x[:, :, 1:]], dim=2)


def first_frame_times(t: float, grid: tuple[int, int, int], *, batch: int = 1, device: torch.device | str = "cpu") -> Tensor:
    """Per-token times [B, L] with 0 for the tokens of the first frame; `grid` is (T, H, W) in patches."""
    times = torch.full((batch, grid[0], grid[1] * grid[2]), t, dtype=torch.float32, device=device)
    times[:, 0] = 0.0
    return times.flatten(1)


def load_clip(
    path: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.bfloat16, config: ClipConfig | None = None
) -> ClipVision:
    """The image encoder from Hugging Face's files or from Wan's `models_clip_*.pth`; its last block is left in the file.

    Raises CheckpointError when tensors are missing or have other shapes.
    """
    with torch.device("meta"):
        model = ClipVision(config or ClipConfig()).requires_grad_(False).eval()
    found = open_checkpoint(path).logical()
    weights = dict(_from_wan(found)) if any(name.startswith("visual.") for name in found) else found
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    missing = [name for name in expected if name not in weights]
    if missing:
        raise CheckpointError(f"{path} is no CLIP image encoder", tried=[f"missing: {name}" for name in missing[:10]])
    for name, shape in expected.items():
        value = weights[name]()
        tensor = value.dequantize(dtype) if isinstance(value, QTensor) else value
        if tensor.numel() != torch.Size(shape).numel():
            raise CheckpointError(f"{path}: {name} is {list(tensor.shape)}, the model has {list(shape)}")
        owner, _, attribute = name.rpartition(".")
        module = model.get_submodule(owner)
        module._parameters[attribute] = nn.Parameter(tensor.reshape(shape).to(device, dtype).contiguous(), requires_grad=False)
    return model


_WAN_TO_HF = {
    "cls_embedding": "embeddings.class_embedding",
    "patch_embedding.weight": "embeddings.patch_embedding.weight",
    "pos_embedding": "embeddings.position_embedding.weight",
    "pre_norm.weight": "pre_layrnorm.weight",
    "pre_norm.bias": "pre_layrnorm.bias",
}
_BLOCK_TO_HF = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}


def _from_wan(found: Mapping[str, Read]) -> Iterator[tuple[str, Read]]:
    for name, read in found.items():
        inner = name.removeprefix("visual.")
        if inner in _WAN_TO_HF:
            yield f"vision_model.{_WAN_TO_HF[inner]}", read
        elif inner.startswith("transformer."):
            _, number, rest = inner.split(".", 2)
            part, _, kind = rest.rpartition(".")
            block = f"vision_model.encoder.layers.{number}"
            if part == "attn.to_qkv":
                for index, letter in enumerate("qkv"):
                    yield f"{block}.self_attn.{letter}_proj.{kind}", _third(read, index)
            elif part in _BLOCK_TO_HF:
                yield f"{block}.{_BLOCK_TO_HF[part]}.{kind}", read


def _third(read: Read, index: int) -> Read:
    def part() -> Tensor:
        value = read()
        whole = value.dequantize() if isinstance(value, QTensor) else value
        return torch.chunk(whole, 3, dim=0)[index]

    return part
