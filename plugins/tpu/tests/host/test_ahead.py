"""Steps that `turbort compile` wrote: a run loads them and compiles nothing, or says why it does not and compiles as always."""

import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import jax
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from turbort_tpu.bridge.convert import spec_of, to_jax
from turbort_tpu.bridge.executor import active
from turbort_tpu.jax_executor import shelf
from turbort_tpu.jax_executor.program import Staged, trace
from turbort_tpu.jax_executor.shelf import Entry, Shelf
from turbort_tpu.jax_executor.signature import Signature
from turbort_tpu.jax_executor.step import CompiledStep

from turbort.errors import PlanError
from turbort.session import Session

PROMPT = "a red circle moves right"


@pytest.fixture
def own_shelf(monkeypatch):
    """An empty shelf for this test; what it takes is gone afterwards."""
    monkeypatch.setattr(active(), "shelf", Shelf())


@pytest.fixture
def compiles():
    """Programs that XLA has compiled since the test began, but for the copy of an argument."""
    seen = []

    def heard(event, seconds, fun_name="", **_):
        if event.endswith("backend_compile_duration") and fun_name != "jit(convert_element_type)":
            seen.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(heard)
    yield seen
    jax.monitoring.unregister_event_duration_listener(heard)


def cli(*args):
    from turbort.cli import app

    with pytest.raises(SystemExit) as ended:
        app([str(arg) for arg in args], prog_name="turbort")
    return ended.value.code or 0


def warned(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "turbort" and record.levelno >= logging.WARNING]


def no_compilation(self):
    raise AssertionError("the step was about to be compiled")


# The whole way, from the command line.


@pytest.fixture(scope="module")
def short(little, tmp_path_factory):
    """The little model with one block, since XLA compiles every block by itself."""
    made = shutil.copytree(little, tmp_path_factory.mktemp("short") / "model")
    spec = yaml.safe_load((made / "model.yaml").read_text())
    spec["dit"]["layers"] = 1
    (made / "model.yaml").write_text(yaml.safe_dump(spec))
    kept = {name: value for name, value in load_file(made / "dit.safetensors").items() if not name.startswith("blocks.1.")}
    save_file(kept, made / "dit.safetensors")
    return made


def compiled(model, out, profile, **variables):
    """What `turbort compile` writes in a process of its own, as on another machine."""
    asked = "compile", "--profile", profile, "--model", str(model), "-o", str(out)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    answer = subprocess.run([sys.executable, "-m", "turbort", *asked], capture_output=True, text=True, env=environment)
    assert answer.returncode == 0, answer.stderr[-2000:]
    return out


@pytest.fixture(scope="module")
def folder(short, tmp_path_factory):
    return compiled(short, tmp_path_factory.mktemp("ahead") / "compiled", "tpu-v5e")


@pytest.fixture
def latents(monkeypatch, tmp_path):
    """Latents of each video that a run makes; they are not decoded."""
    found = []
    monkeypatch.setattr(Session, "decode", lambda self, latents, job, told=None: (found.append(latents), None))
    monkeypatch.setenv("TURBORT_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return found


def ran(model, plan):
    return cli("run", "--model", model, "--plan", plan, "--prompt", PROMPT, "--steps", 2, "-o", "a.npy", "-q")


def test_a_run_takes_the_compiled_step_and_compiles_none(short, folder, latents, own_shelf, monkeypatch, caplog):
    assert ran(short, folder / "plan.yaml") == 0
    with monkeypatch.context() as patch, caplog.at_level(logging.INFO, "turbort"):
        patch.setattr(Staged, "traced", no_compilation)
        assert ran(short, folder) == 0
    loaded = [line for line in caplog.messages if "nothing is compiled" in line]
    assert len(loaded) == 1
    assert str(folder / "step.executable") in loaded[0]
    without, with_it = latents
    assert torch.equal(without, with_it)
    assert with_it.std() > 0.1
    report = json.loads(Path("a.report.json").read_text())
    assert {row["provider"].split("/")[0] for row in report["executed"] if row["stage"] == "dit"} == {"tpu"}


def test_a_changed_folder_is_refused(short, folder, latents, own_shelf, tmp_path, capsys):
    moved = shutil.copytree(folder, tmp_path / "changed")
    with open(moved / "step.executable", "r+b") as file:
        file.seek(100)
        file.write(b"changed")
    assert ran(short, moved) != 0
    assert "step.executable has changed" in capsys.readouterr().err
    assert not active().shelf
    assert not latents


@pytest.mark.skipif(not find_spec("libtpu"), reason='libtpu is not installed: pip install "jax[tpu]==0.10.2"')
def test_the_executable_for_a_tpu_is_written_and_never_loaded_elsewhere(short, tmp_path):
    """libtpu compiles and serialises the step without a TPU; this process, which has none, says what it is for."""
    out = compiled(short, tmp_path / "v6e", "tpu-v6e", TURBORT_TPU_EMULATE="")
    signature = json.loads((out / "programs.json").read_text())[0]["signature"]
    assert signature["device"] == "TPU v6 lite"
    assert set(signature["versions"]) == {"jax", "jaxlib", "libtpu"}
    assert (out / "step.stablehlo").read_text().count("tpu_custom_call") > 10
    taken = Shelf()
    taken.add(out)
    here = replace(Signature.from_data(signature), device=Signature.of(_staged(), jax.devices()[0]).device)
    entry, why = taken.find(here)
    assert entry is None
    assert "it is for TPU v6 lite, and this is cpu" in why


# One step at a time.


def double(x, factor):
    return x * factor + 1


X = torch.arange(6.0).view(3, 2)


def _staged():
    program, _, inputs = trace(double, (X, 2.0), {})
    held = program.weights, {name: to_jax(value) for name, value in program.constants.items()}, []
    return Staged(program, held, [spec_of(value) for value in inputs])


@pytest.fixture(scope="module")
def shelved(tmp_path_factory):
    """A folder with `double` for a 3 x 2 tensor and a factor of 2."""
    out, staged = tmp_path_factory.mktemp("double"), _staged()
    shelf.write(out, staged.traced().lower().compile(), Signature.of(staged, jax.devices()[0]), peak=7)
    return out


def on_shelf(out, **changes):
    """A shelf with the folder, its one signature changed."""
    found = Shelf()
    found.add(out)
    found._entries = [replace(entry, signature=replace(entry.signature, **changes)) for entry in found._entries]
    return found


def test_loading_compiles_nothing(shelved, compiles):
    peaks = []
    step = CompiledStep(double, peaks.append, on_shelf(shelved))
    torch.testing.assert_close(step(X, 2.0), X * 2 + 1, rtol=0, atol=0)
    assert not compiles
    assert peaks == [7]
    CompiledStep(double)(X, 2.0)
    assert compiles  # the same without a shelf


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": "TPU v5 lite"}, "it is for TPU v5 lite, and this is cpu"),
        ({"versions": {"jax": "0.1.75", "jaxlib": jax.lib.__version__}}, "it was compiled with jax 0.1.75, and this is jax"),
        ({"chips": 4}, "it is for 4 chip(s), and this run is on 1"),
        ({"settings": {"XLA_FLAGS": "--xla_fast"}}, "it was compiled with LIBTPU_INIT_ARGS"),
        ({"source": "0"}, "turbort_tpu has changed since"),
        ({"program": "0"}, "the step computes something else"),
    ],
)
def test_each_part_of_the_signature_counts(shelved, changes, reason, caplog, compiles):
    if "settings" in changes:
        changes = {"settings": {**on_shelf(shelved)._entries[0].signature.settings, "LIBTPU_INIT_ARGS": "--other"}}
    step = CompiledStep(double, shelf=on_shelf(shelved, **changes))
    torch.testing.assert_close(step(X, 2.0), X * 2 + 1)
    assert compiles
    (said,) = warned(caplog)
    assert reason in said


@pytest.mark.parametrize(
    ("step", "args", "reason"),
    [
        (double, (torch.ones(5, 2), 2.0), "it takes float32[3,2] where this step has float32[5,2]"),
        (double, (X.bfloat16(), 2.0), "it takes float32[3,2] where this step has bfloat16[3,2]"),
        (double, (X, 3.0), "the step computes something else"),
        (lambda x, factor: x * factor - 1, (X, 2.0), "the step computes something else"),
    ],
    ids=["shape", "dtype", "constant", "function"],
)
def test_another_step_is_compiled(shelved, step, args, reason, caplog, compiles):
    torch.testing.assert_close(CompiledStep(step, shelf=on_shelf(shelved))(*args), step(*args))
    assert compiles
    assert reason in caplog.text


def test_a_folder_without_executables_says_so(tmp_path, caplog):
    CompiledStep(double, shelf=on_shelf(tmp_path))(X, 2.0)
    assert "holds no executable for TPUs" in caplog.text


def test_a_file_that_changed_after_the_check_is_not_unpickled(shelved, tmp_path, caplog, monkeypatch):
    """The manifest is checked before; this is the file that changes between that and the first step."""
    moved = shutil.copytree(shelved, tmp_path / "moved")
    taken = on_shelf(moved)
    (moved / "step.executable").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    monkeypatch.setattr(shelf.serialize_executable, "deserialize_and_load", None)
    torch.testing.assert_close(CompiledStep(double, shelf=taken)(X, 2.0), X * 2 + 1)
    assert "is not the file that was compiled" in caplog.text


def test_a_file_that_the_runtime_refuses_is_compiled_instead(shelved, tmp_path, caplog):
    import hashlib

    taken = on_shelf(shelved)
    (tmp_path / "step.executable").write_bytes(b"nothing that loads")
    digest = hashlib.sha256(b"nothing that loads").hexdigest()
    taken._entries = [replace(taken._entries[0], path=tmp_path / "step.executable", sha256=digest)]
    torch.testing.assert_close(CompiledStep(double, shelf=taken)(X, 2.0), X * 2 + 1)
    assert "the runtime does not load" in caplog.text


def test_an_executable_that_fails_at_its_first_step_is_compiled_instead(shelved, monkeypatch, caplog):
    def fails(*_):
        raise RuntimeError("FAILED_PRECONDITION: another topology\nmore")

    monkeypatch.setattr(Entry, "load", lambda *_: (fails, ""))
    step = CompiledStep(double, shelf=on_shelf(shelved))
    for _ in range(2):
        torch.testing.assert_close(step(X, 2.0), X * 2 + 1)
    assert warned(caplog) == [
        "the step that was compiled ahead of time does not run here: RuntimeError: FAILED_PRECONDITION: another topology"
    ]


def test_an_index_that_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "programs.json").write_text('[{"file": "step.executable"}]')
    with pytest.raises(PlanError, match="is no list of executables"):
        Shelf().add(tmp_path)
