"""A turbort model as a diffusers pipeline folder: the same weights under other names, dequantised to float32.

SLA's projection is left out, because diffusers' transformer has dense attention only.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch

from turbort.checkpoints import open_checkpoint, stream
from turbort.checkpoints.diffusers import dit_to_wan, vae_to_wan
from turbort.models.files import locate
from turbort.models.spec import ModelSpec, get_model
from turbort.quant.qtensor import QTensor

SLA_PROJECTION = "*.attn_op.local_attn.proj_l.*"


def build(spec: ModelSpec, root: Path):
    """A `WanPipeline` with the weights of `spec` found under `root`."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    files = locate(spec, root)
    return WanPipeline(
        tokenizer=_tokenizer(files["tokenizer"]),
        text_encoder=_text_encoder(spec, files["text"]),
        vae=_vae(spec, files["vae"]),
        transformer=_transformer(spec, files["dit"]),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def _transformer(spec: ModelSpec, path: Path):
    from diffusers import WanTransformer3DModel

    dit = spec.dit
    model = WanTransformer3DModel(
        patch_size=dit.patch,
        num_attention_heads=dit.heads,
        attention_head_dim=dit.head_dim,
        in_channels=dit.in_channels,
        out_channels=dit.out_channels,
        text_dim=dit.text_dim,
        freq_dim=dit.freq_dim,
        ffn_dim=dit.ffn_dim,
        num_layers=dit.layers,
        eps=dit.eps,
    )
    return _filled(model, {name: dit_to_wan(name) for name in model.state_dict()}, path, ignore=[SLA_PROJECTION])


def _vae(spec: ModelSpec, path: Path):
    from diffusers import AutoencoderKLWan

    vae = spec.vae
    model = AutoencoderKLWan(
        base_dim=vae.base_dim,
        z_dim=vae.z_dim,
        dim_mult=list(vae.dim_mult),
        num_res_blocks=vae.res_blocks,
        temperal_downsample=list(vae.temporal_downsample),
        latents_mean=list(vae.mean),
        latents_std=list(vae.std),
    )
    return _filled(model, vae_to_wan(model.state_dict()), path)


def _text_encoder(spec: ModelSpec, path: Path):
    from transformers import UMT5Config, UMT5EncoderModel

    text = spec.text
    config = UMT5Config(
        vocab_size=text.vocab,
        d_model=text.dim,
        d_kv=text.head_dim,
        d_ff=text.ffn_dim,
        num_layers=text.layers,
        num_heads=text.heads,
    )
    model = UMT5EncoderModel(config)
    return _filled(model, {name: name for name in model.state_dict()}, path)


def _filled(model, names: dict[str, str], path: Path, ignore: list[str] | tuple[str, ...] = ()):
    """`model` with the weights at `path`; `names` maps its names to turbort's."""
    back = {ours: theirs for theirs, ours in names.items()}
    shapes = {names[theirs]: tuple(value.shape) for theirs, value in model.state_dict().items()}
    weights = {
        back[name]: value.dequantize(torch.float32) if isinstance(value, QTensor) else value.float()
        for name, value in stream(open_checkpoint(path), shapes, ignore=ignore)
    }
    model.load_state_dict(weights)
    return model.eval()


def _tokenizer(path: Path):
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path))
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    spec = get_model(args.model)
    build(spec, args.weights or spec.root or Path.cwd()).save_pretrained(args.out)


if __name__ == "__main__":
    main()
