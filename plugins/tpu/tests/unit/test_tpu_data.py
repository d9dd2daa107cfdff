"""Generations, probe, kernel table and memory figures of the TPU plugin: nothing here needs jax."""

import pytest
import turbort_tpu
from turbort_tpu import executors, fit, probe
from turbort_tpu.backend import Tpu
from turbort_tpu.generations import GENERATIONS, GIB, by_kind
from turbort_tpu.table import tpu_kernels

from turbort.backend import Device, Unavailable
from turbort.errors import InputError, UnavailableError
from turbort.kernel import Call, TensorSpec
from turbort.models.spec import MODELS
from turbort.planner import find_target, make_plan
from turbort.profile import load_profile
from turbort.registry import Registry

PROFILES = ("tpu-v4", "tpu-v5e", "tpu-v5p", "tpu-v6e")


@pytest.fixture(autouse=True)
def no_emulation(monkeypatch):
    monkeypatch.delenv(probe.EMULATE, raising=False)


@pytest.fixture(scope="module")
def registry():
    known = Registry()
    return known if "tpu" in known.backends else Registry(extra=[turbort_tpu])  # not installed, only on the path


def planned(model, profile, registry, **options):
    chosen = load_profile(profile)
    target = find_target(chosen, registry, absent=True)
    return make_plan(MODELS[model], chosen, registry, target=target, batch=2, **options)


def kernel(op, name):
    return next(row for row in tpu_kernels() if (row.op, row.name) == (op, name))


def weight_call(x="bfloat16"):
    return Call("linear", "p", "self.qkv", {"x": TensorSpec((1, 64, 256), x), "weight": TensorSpec((512, 256), "bfloat16")})


@pytest.mark.parametrize(
    ("name", "int8", "fp8"),
    [("v4", False, False), ("v5e", True, False), ("v5p", True, False), ("v6e", True, False), ("tpu7x", False, True)],
)
def test_formats_that_a_generation_gains_from(name, int8, fp8):
    assert ("int8" in GENERATIONS[name].features, "fp8" in GENERATIONS[name].features) == (int8, fp8)


def test_every_reason_names_its_generation():
    for row in GENERATIONS.values():
        assert all(row.name in reason for reason in row.no_gain.values())


def test_jax_device_kinds():
    assert by_kind("TPU v5 lite") is GENERATIONS["v5e"]
    assert by_kind("TPU v6 lite") is GENERATIONS["v6e"]
    assert by_kind("NVIDIA H100") is None


def pci(folder, *devices):
    for number, (vendor, device) in enumerate(devices):
        (folder / str(number)).mkdir()
        (folder / str(number) / "vendor").write_text(f"{vendor}\n")
        (folder / str(number) / "device").write_text(f"{device}\n")
    return folder


def test_no_tpu_says_what_to_do(tmp_path):
    found = probe.find(pci(tmp_path, ("0x10de", "0x0063")))
    assert isinstance(found, Unavailable)
    assert "PCI" in found.reason
    assert probe.EMULATE in found.fix


def test_a_chip_without_packages_names_them(tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "find_spec", lambda name: None)
    found = probe.find(pci(tmp_path, (probe.VENDOR, "0x0063"), (probe.VENDOR, "0x0063")))
    assert isinstance(found, Unavailable)
    assert "2 x TPU v5e" in found.reason
    assert "jax and libtpu" in found.reason
    assert "pip install" in found.fix


def test_chips_become_devices(tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "find_spec", lambda name: object())
    found = probe.find(pci(tmp_path, (probe.VENDOR, "0x006f"), (probe.VENDOR, "0xffff")))
    assert [(device.arch, device.memory) for device in found] == [("v6e", int(31.25 * GIB))]


def test_an_unknown_generation_to_emulate_is_no_crash(monkeypatch):
    monkeypatch.setenv(probe.EMULATE, "v9")
    found = probe.find()
    assert isinstance(found, Unavailable)
    assert "v9" in found.reason
    assert "v5e" in found.fix


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_finds_its_generation(name, registry):
    profile = load_profile(name)
    target = find_target(profile, registry, absent=True)
    assert (target.backend, target.device.arch) == ("tpu", name.removeprefix("tpu-"))
    assert profile.target.memory.allows(target.device.memory)


def test_running_needs_the_device_itself(registry):
    with pytest.raises(UnavailableError, match="no TPU on the PCI bus"):
        find_target(load_profile("tpu-v5e"), registry)


def test_int8_is_refused_on_v4_in_words():
    v4 = probe.describe(GENERATIONS["v4"])
    reason = kernel("linear", "pallas-w8a8").refusal(weight_call(), "w8a8", v4)
    assert reason.startswith("INT8 brings no gain on v4: ")
    assert kernel("linear", "xla-linear").refusal(weight_call(), "bf16", v4) is None


def test_tpu7x_takes_fp8_and_not_int8():
    device = probe.describe(GENERATIONS["tpu7x"])
    assert "no gain on tpu7x" in kernel("linear", "pallas-w8a8").refusal(weight_call(), "w8a8", device)
    assert kernel("linear", "pallas-fp8").refusal(weight_call(), "fp8", device) is None


@pytest.mark.parametrize(
    ("op", "name", "args", "words"),
    [
        ("sla_attention", "pallas-sla", {"q": TensorSpec((1, 64, 2, 64), "bfloat16")}, "head_dim 64"),
        ("sla_attention", "pallas-sla", {"block": (64, 96)}, "not 64 and 96"),
        ("attention", "pallas-flash", {"v": TensorSpec((1, 64, 2, 128), "float32")}, "v is float32"),
        ("qk_norm_rope", "pallas-rope", {"x": TensorSpec((1, 8, 192), "bfloat16"), "heads": 3}, "not 64"),
        ("rms_norm", "pallas-rows", {"emit": "int8-block128"}, "int8-block128"),
        ("linear", "pallas-w8a8", {"weight": TensorSpec((4, 4, 1, 1), "bfloat16")}, "not 4"),
    ],
)
def test_refusals_name_the_figure(op, name, args, words):
    row = kernel(op, name)
    assert words in row.refusal(Call(op, "p", "r", args), row.precisions[-1], probe.describe(GENERATIONS["v5e"]))


def test_14b_does_not_fit_on_v5e(registry):
    with pytest.raises(InputError) as caught:
        planned("wan2.1-t2v-14b", "tpu-v5e", registry)
    text = str(caught.value)
    assert "15.75 GiB" in text
    assert "v6e (31.25 GiB) at w8a8" in text
    assert "wan2.1-t2v-1.3b" in text


def test_14b_fits_on_v6e_in_int8(registry):
    plan = planned("wan2.1-t2v-14b", "tpu-v6e", registry)
    assert {choice.precision for choice in plan if choice.role == "ffn.in"} == {"w8a8"}
    assert not plan.fallbacks
    assert "notes" not in plan.header


def test_a_precision_without_gain_is_remarked(registry):
    profile = load_profile("tpu-v5e")
    device = probe.describe(GENERATIONS["v4"])
    from turbort.planner import Target

    plan = make_plan(MODELS["wan2.1-t2v-1.3b"], profile, registry, target=Target("tpu", device), batch=2)
    assert any("INT8 brings no gain on v4" in note and "call sites" in note for note in plan.header["notes"])
    assert {choice.precision for choice in plan if choice.role == "ffn.in"} == {"bf16"}


# Peaks that libtpu 0.0.42 reported for whole compiled trunks: model, tokens, precision, GiB.
COMPILED = [
    ("wan2.1-t2v-1.3b", 32_768, "bf16", 4.08),
    ("wan2.1-t2v-1.3b", 32_768, "w8a8", 3.15),
    ("wan2.1-t2v-14b", 32_768, "w8a8", 16.6),
    ("wan2.1-t2v-14b", 32_768, "bf16", 30.0),
    ("wan2.1-t2v-14b", 75_776, "w8a8", 21.1),
    ("wan2.1-t2v-14b", 32_760, "w8a8", 17.51),
]


@pytest.mark.parametrize(("model", "length", "precision", "peak"), COMPILED)
def test_the_figure_is_near_what_the_compiler_reports(model, length, precision, peak):
    figure = fit.need(MODELS[model].dit, length, 2, precision).total / GIB
    assert 0.99 < figure / peak < 1.08


def test_memory_is_unknown_when_emulated(monkeypatch):
    monkeypatch.setenv(probe.EMULATE, "v5e")
    backend, device = Tpu(), probe.describe(GENERATIONS["v5e"])
    assert (backend.memory(device).used, backend.memory(device).total) == (None, None)
    backend._note_peak(3 * GIB)
    assert backend.explain(device)["peak, by the compiler"] == "3.00 GiB"


def test_stand_in_matches_globs():
    assert Tpu().stand_in(("v5*",)).arch == "v5e"
    assert Tpu().stand_in(("sm_90",)) is None
    assert isinstance(Tpu().stand_in(("tpu7x",)), Device)
