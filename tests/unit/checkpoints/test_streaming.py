"""Loading costs one layer at a time, maps instead of copying, and names weights by their content."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.unit.checkpoints.makers import dit_shapes, fill, lightx2v, turbodiffusion
from turbort.checkpoints import digest as digests
from turbort.checkpoints import load_into, open_checkpoint, stream
from turbort.checkpoints.digest import digest_files
from turbort.models.spec import DitConfig
from turbort.models.wan_dit import WanDit
from turbort.quant.qtensor import QTensor


def private_bytes():
    """Memory of this process that is not backed by a file."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("form", ["safetensors", "pth"])
def test_reading_one_by_one_does_not_hold_the_file(tmp_path, form):
    count, rows = 24, 1024 * 1024  # 24 tensors of 4 MiB
    tensors = {f"t{n}.weight": torch.zeros(rows) for n in range(count)}
    save_file(tensors, tmp_path / "w") if form == "safetensors" else torch.save(tensors, tmp_path / "w")
    del tensors
    checkpoint = open_checkpoint(tmp_path / "w")
    before, most = private_bytes(), 0
    for _, value in stream(checkpoint, {f"t{n}.weight": (rows,) for n in range(count)}):
        copied = value.to(torch.float16)
        most = max(most, private_bytes() - before)
        del value, copied
    assert most < 24 * 2**20, f"{most / 2**20:.0f} MiB of {count * 4} MiB were held at once"


def test_plain_weights_are_views_of_the_file(tmp_path):
    save_file({"a.weight": torch.arange(4.0)}, tmp_path / "w.safetensors")
    checkpoint = open_checkpoint(tmp_path / "w.safetensors")
    value = checkpoint.logical()["a.weight"]()
    value.add_(1)
    again = open_checkpoint(tmp_path / "w.safetensors").logical()["a.weight"]()
    assert again.tolist() == [0, 1, 2, 3], "writing to a mapped weight must not reach the file"


@pytest.mark.parametrize("make", [dict, turbodiffusion, lambda weights: turbodiffusion(weights, quant=True), lightx2v])
def test_load_into_a_model_on_meta(tmp_path, make):
    """Every dialect ends in a model that computes; quantised ones within their error, plain ones exactly."""
    shapes = dit_shapes(dim=128, ffn=128, layers=1)
    weights = fill(shapes, dtype=torch.float32)
    save_file({name: value.contiguous() for name, value in make(weights).items()}, tmp_path / "w.safetensors")
    with torch.device("meta"):
        model = WanDit(DitConfig(dim=128, ffn_dim=128, heads=2, layers=1, text_dim=64))
    load_into(model, open_checkpoint(tmp_path / "w.safetensors"))
    state = model.state_dict()
    assert not any(value.is_meta for value in state.values())
    for name, value in weights.items():
        error = (state[name].float() - value).norm() / value.norm()
        assert error < 0.02, name
        if "blocks." not in name:
            assert error == 0, name


def test_place_may_keep_anything(tmp_path):
    shapes = dit_shapes(dim=128, ffn=128, layers=1)
    save_file(lightx2v(fill(shapes)), tmp_path / "w.safetensors")
    with torch.device("meta"):
        model = WanDit(DitConfig(dim=128, ffn_dim=128, heads=2, layers=1, text_dim=64))
    seen = []

    def place(name, value):
        seen.append(name)
        return value

    load_into(model, open_checkpoint(tmp_path / "w.safetensors"), place=place)
    assert isinstance(model.blocks[0].self_attn.q.weight, QTensor)
    assert "weight" not in dict(model.blocks[0].self_attn.q.named_parameters())
    assert isinstance(model.blocks[0].self_attn.q.bias, torch.nn.Parameter)
    assert seen == list(dict(WanDit.named_parameters(_on_meta())))


def _on_meta():
    with torch.device("meta"):
        return WanDit(DitConfig(dim=128, ffn_dim=128, heads=2, layers=1, text_dim=64))


def test_digest_is_of_the_content(tmp_path):
    for name, value in (("a", 0.0), ("b", 0.0), ("c", 1.0)):
        save_file({"x.weight": torch.full((100,), value)}, tmp_path / name)
    a, b, c = (open_checkpoint(tmp_path / name).digest for name in "abc")
    assert a == b != c
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", a)


def test_digest_of_large_files_is_sampled_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "WHOLE", 1 << 20)
    monkeypatch.setattr(digests, "SAMPLE_BYTES", 1 << 10)
    path = tmp_path / "w"
    path.write_bytes(bytes(2 << 20))
    first = digest_files([path])
    assert first.startswith("sha256-sampled:")
    for position in (0, (2 << 20) - 1):
        data = bytearray(2 << 20)
        data[position] = 1
        path.write_bytes(data)
        assert digest_files([path]) != first
    path.write_bytes(bytes((2 << 20) + 1))
    assert digest_files([path]) != first
