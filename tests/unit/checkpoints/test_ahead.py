"""Reading ahead: in order, each stored tensor once, no more waiting than allowed, and failures where they belong."""

import threading
from collections import Counter
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from tests.unit.checkpoints.makers import dit_shapes, fill, turbodiffusion
from turbort.checkpoints import ahead, open_checkpoint, stream
from turbort.checkpoints.dialect import Entry
from turbort.errors import CheckpointError
from turbort.quant.qtensor import QTensor

SHAPES = dit_shapes(dim=16, ffn=24, layers=3, text=8)
DEVICE = torch.device("xpu")  # read ahead for it, although nothing is ever put there
CPU = torch.device("cpu")
PATIENCE = 60.0
"""Seconds until a thread that does not come is given up; only a failing test waits so long."""


@pytest.mark.parametrize("device", [CPU, DEVICE])
def test_the_quantised_dialect_is_read_once_and_in_order(tmp_path, monkeypatch, device):
    stored = turbodiffusion(fill(SHAPES), quant=True)
    torch.save(stored, tmp_path / "w.pth")
    counts = Counter()
    read = ahead._copied
    monkeypatch.setattr(ahead, "_copied", lambda tensor, pin: counts.update([tensor.data_ptr()]) or read(tensor, pin))
    checkpoint = open_checkpoint(tmp_path / "w.pth")
    loads = Counter()
    source = {name: replace(entry, read=counted(entry, loads)) for name, entry in checkpoint.entries.items()}
    values = list(stream(replace(checkpoint, entries=source), SHAPES, device=device))
    assert [name for name, _ in values] == list(SHAPES)
    assert set(loads.values()) == {1}
    assert sum(loads.values()) == len(SHAPES)
    copies = 0 if device == CPU else len(stored)
    assert sum(counts.values()) == copies
    for name, value in values:
        linear = name.removesuffix(".weight")
        if isinstance(value, QTensor):
            assert torch.equal(value.values, stored[f"{linear}.int8_weight"])
            assert torch.equal(value.scales, stored[f"{linear}.scale"])
        else:
            assert torch.equal(value, stored[name].reshape(value.shape))


def counted(entry, loads):
    def read():
        loads[entry.sources] += 1
        return entry.read()

    return read


def test_no_more_waits_than_allowed(monkeypatch):
    """With room for three weights, no fourth is read before the first has been taken."""
    monkeypatch.setattr(ahead, "HELD", 3 * 4 * 100)
    started, reading, gate = [], threading.Semaphore(0), threading.Event()

    def entry(number):
        def read():
            started.append(number)
            reading.release()
            gate.wait(PATIENCE)
            return torch.zeros(100)

        return f"w{number}", Entry((100,), torch.float32, read, (f"w{number}",))

    taken = []
    source = ahead.read_ahead((entry(number) for number in range(8)), DEVICE)
    thread = threading.Thread(target=lambda: taken.append(next(source)))
    thread.start()
    assert all(reading.acquire(timeout=PATIENCE) for _ in range(3))
    assert not reading.acquire(timeout=0.1)  # a fourth has a moment to show itself
    assert sorted(started) == [0, 1, 2]
    gate.set()
    thread.join(PATIENCE)
    assert [name for name, _ in taken] == ["w0"]
    assert [name for name, _ in source] == [f"w{number}" for number in range(1, 8)]


def test_a_failure_comes_out_at_its_weight(tmp_path):
    weights = fill(SHAPES)
    weights["blocks.1.ffn.0.weight"] = torch.zeros(24, 16, dtype=torch.int8)
    weights["blocks.1.ffn.0.weight_scale"] = torch.full((24, 1), float("nan"))
    save_file(weights, tmp_path / "w.safetensors")
    got = []
    with pytest.raises(CheckpointError, match="not all finite"):
        got.extend(iter(stream(open_checkpoint(tmp_path / "w.safetensors"), SHAPES, device=DEVICE)))
