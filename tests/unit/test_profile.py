"""Reading profiles: units, defaults, ranges, extends, search order, and the choice for a device."""

import subprocess
import sys
from pathlib import Path

import pytest

from turbort.backend import Device
from turbort.errors import InputError
from turbort.precision import PRECISIONS, Precision
from turbort.profile import find_profile, list_profiles, load_profile, parse_profile, pick_profile

BASE = "target: {backend: cuda}\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def device(arch: str, gib: int | None, backend: str = "cuda") -> Device:
    memory = None if gib is None else gib * 2**30
    return Device(backend, "a device", "cuda:0", arch, memory, frozenset({"float32", "bfloat16"}))


def test_reading_profiles_imports_no_torch():
    code = "import sys, turbort.profile as p; p.list_profiles(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_example_of_the_design():
    text = """
schema: 1
name: ascend910
target:    {backend: ascend, arch: ["Ascend910B*", "Ascend910_93*"], memory: ">=32GiB"}
precision: {io: fp16, linear: {max: w8a8, min: w4a8, sparsity_threshold: 0.7, activation_sparsity: 0.95}, text: w8a8}
memory:    {strategy: acl-pool, tier_boundary: 40GiB, offload: [text, vae], activation_cache: int8, vae_tile: [256, 512]}
graph:     {capture: false}
quality:   {psnr: 28}
"""
    profile = parse_profile(text)
    assert profile.target.arch == ("Ascend910B*", "Ascend910_93*")
    assert profile.target.memory is not None
    assert profile.target.memory.allows(32 * 2**30)
    assert not profile.target.memory.allows(32 * 2**30 - 1)
    assert (profile.precision.linear.max, profile.precision.linear.min, profile.precision.linear_name) == ("w8a8", "w4a8", "w8a8")
    assert profile.memory.tier_boundary == 40 * 2**30
    assert profile.memory.offload == ("text", "vae")
    assert profile.memory.vae_tile == (256, 512)
    assert profile.graph.capture is False
    assert profile.quality.psnr == 28.0


def test_one_name_is_a_range_of_one():
    profile = parse_profile(BASE + "precision: {linear: w8a8}")
    assert (profile.precision.linear.max, profile.precision.linear.min) == ("w8a8", "w8a8")
    assert profile.document["precision"]["linear"] == "w8a8"


def test_the_first_matching_override_wins():
    profile = parse_profile(BASE + 'precision: {overrides: {"blocks.0.*": bf16, "blocks.*": w8a8}}')
    assert profile.precision.override("dit/blocks.0.ffn.op") == "bf16"
    assert profile.precision.override("blocks.1.ffn.op") == "w8a8"
    assert profile.precision.override("head.op") is None


@pytest.mark.parametrize(
    ("batch", "least", "most"),
    [
        ("{}", 1, 1),
        ("{mode: fixed, size: 2}", 2, 2),
        ("{mode: dynamic, min: 1, max: 4}", 1, 4),
        ("{mode: dynamic, min: 3}", 3, 3),
    ],
)
def test_batch_bounds(batch, least, most):
    found = parse_profile(f"{BASE}batch: {batch}").batch
    assert (found.least, found.most) == (least, most)


def test_what_is_printed_reads_back_equal():
    for entry in list_profiles():
        assert entry.profile is not None, entry.problem
        again = parse_profile(entry.profile.dumps())
        assert again.from_file(entry.profile.origin) == entry.profile
        assert again.digest == entry.profile.digest


def test_profiles_are_frozen():
    profile = parse_profile(BASE)
    with pytest.raises(Exception, match="frozen"):
        profile.fallback = "error"


def test_precisions_of_plugins_are_names_too():
    text = BASE + "precision: {linear: w2a8}"
    with pytest.raises(InputError, match="'w2a8' is not one of"):
        parse_profile(text)
    table = {**PRECISIONS, "w2a8": Precision("w2a8", "linear", 2, 8, "per channel", 1e-1)}
    assert parse_profile(text, precisions=table).precision.linear_name == "w2a8"


class TestExtends:
    def test_child_over_parent(self, tmp_path):
        write(tmp_path / "parent.yaml", BASE + "name: parent\nprecision: {linear: w8a8, vae: fp32}\nfallback: error\n")
        child = write(tmp_path / "child.yaml", "extends: parent\nprecision: {vae: bf16}\n")
        profile = load_profile(child)
        assert profile.name == "child"
        assert (profile.precision.linear_name, profile.precision.vae, profile.fallback) == ("w8a8", "bf16", "error")
        assert profile.origin == str(child)

    def test_a_new_batch_mode_replaces_the_parents_batch(self, tmp_path):
        write(tmp_path / "parent.yaml", BASE + "batch: {mode: dynamic, min: 2, max: 4}\n")
        child = write(tmp_path / "child.yaml", "extends: parent.yaml\nbatch: {mode: fixed, size: 1}\n")
        assert load_profile(child).batch.most == 1

    def test_a_shipped_profile_can_be_extended_by_name(self, tmp_path):
        child = write(tmp_path / "mine.yaml", "extends: h100\nquality: {psnr: 33}\n")
        profile = load_profile(child)
        assert (profile.target.arch, profile.quality.psnr) == (("sm_90",), 33.0)

    def test_a_file_may_extend_the_shipped_profile_of_its_own_name(self, tmp_path):
        child = write(tmp_path / "h100.yaml", "extends: h100\nquality: {psnr: 33}\n")
        assert load_profile(child).quality.psnr == 33.0

    def test_an_error_in_the_parent_names_the_parents_line(self, tmp_path):
        parent = write(tmp_path / "parent.yaml", BASE + "\nfalback: error\n")
        child = write(tmp_path / "child.yaml", "extends: parent\n")
        with pytest.raises(InputError, match="unknown key 'falback'") as caught:
            load_profile(child)
        assert caught.value.message.startswith(f"{parent}:3: ")

    @pytest.mark.parametrize("start", ["a", "b"])
    def test_cycles_and_two_levels_are_refused(self, tmp_path, start):
        write(tmp_path / "a.yaml", BASE + "extends: b\n")
        write(tmp_path / "b.yaml", BASE + "extends: a\n")
        with pytest.raises(InputError, match="only one level"):
            load_profile(tmp_path / f"{start}.yaml")

    def test_itself_is_refused(self, tmp_path):
        path = write(tmp_path / "selfish.yaml", BASE + "extends: ./selfish.yaml\n")
        with pytest.raises(InputError, match="selfish"):
            load_profile(path)

    @pytest.mark.parametrize("text", ["extends: 3", "extends: [h100]", "extends: nowhere"])
    def test_bad_names_carry_the_line(self, tmp_path, text):
        path = write(tmp_path / "x.yaml", f"fallback: warn\n{text}\n")
        with pytest.raises(InputError) as caught:
            load_profile(path)
        assert caught.value.message.startswith(f"{path}:2: ")


class TestSearch:
    def test_order(self, tmp_path, monkeypatch):
        here, environment, plugin = tmp_path / "here", tmp_path / "environment", tmp_path / "plugin"
        for folder in (here, environment, plugin):
            write(folder / "h100.yaml", BASE)
            write(folder / "mine.yaml", BASE)
        monkeypatch.setenv("TURBORT_PROFILES", str(environment))
        monkeypatch.chdir(here)
        assert find_profile("h100", [plugin]) == Path("h100.yaml")
        (here / "h100.yaml").unlink()
        assert find_profile("h100.yaml", [plugin]) == environment / "h100.yaml"
        (environment / "h100.yaml").unlink()
        assert find_profile("h100", [plugin]).parent.name == "profiles"
        (here / "mine.yaml").unlink()
        (environment / "mine.yaml").unlink()
        assert find_profile("mine", [plugin]) == plugin / "mine.yaml"

    def test_a_saved_plan_hides_no_profile(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        plan = write(tmp_path / "h100.yaml", "plan: 1\nmodel: tiny\nsites: {}\n")
        child = write(tmp_path / "child.yaml", "schema: 1\nname: child\nextends: h100\n")
        assert load_profile("h100").target.backend == "cuda"
        assert load_profile(child).target.backend == "cuda"
        for given in ("h100.yaml", str(plan)):
            with pytest.raises(InputError, match="is a plan, not a profile") as caught:
                load_profile(given)
            assert "--plan" in (caught.value.fix or "")

    def test_a_path_is_taken_as_it_is(self, tmp_path):
        assert find_profile(str(write(tmp_path / "odd.name", BASE))) == tmp_path / "odd.name"
        with pytest.raises(InputError, match="no such file"):
            find_profile(str(tmp_path / "absent.yaml"))

    def test_nearest_names(self):
        with pytest.raises(InputError, match="unknown profile 'asend910'") as caught:
            load_profile("asend910")
        assert "did you mean 'ascend910'" in str(caught.value)
        assert caught.value.exit_code == 2

    def test_a_broken_file_is_a_row_and_breaks_nothing(self, tmp_path, monkeypatch):
        write(tmp_path / "broken.yaml", "target: [")
        monkeypatch.setenv("TURBORT_PROFILES", str(tmp_path))
        rows = {row.name: row for row in list_profiles()}
        assert rows["broken"].profile is None
        assert rows["broken"].problem
        assert rows["broken"].origin == "environment"
        assert rows["h100"].profile is not None


@pytest.mark.parametrize(
    ("arch", "gib", "name"),
    [
        ("sm_80", 79, "a100"), ("sm_86", 12, "rtx3090"), ("sm_89", 23, "rtx4090"), ("sm_89", 44, "l40s"), ("sm_90", 79, "h100"),
        ("sm_90", 139, "h200"), ("sm_90", None, "h100"), ("sm_100", 178, "b200"), ("sm_120", 31, "rtx5090"),
    ],
)  # fmt: skip
def test_the_profile_of_an_nvidia_device(arch, gib, name):
    assert pick_profile(device(arch, gib)).name == name


def test_the_profile_of_other_devices():
    assert pick_profile(device("Ascend910B3", 64, "ascend")).name == "ascend910"
    assert pick_profile(device("Ascend310P3", 24, "ascend")).name == "ascend310p"
    assert pick_profile(device("v5e", 15, "tpu")).name == "tpu-v5e"
    assert pick_profile(device("riscv64", 4, "reference")).name == "cpu"


def test_a_device_that_no_profile_names_gets_a_plain_one():
    profile = pick_profile(device("x1", 4, "toy"))
    assert (profile.target.backend, profile.precision.linear_name, profile.precision.compute) == ("toy", "bf16", "bf16")
