"""Which device both runs of a verification are on."""

import pytest

from turbort.backend import Device
from turbort.job import Job
from turbort.models.spec import MODELS
from turbort.profile import load_profile
from turbort.quality import verify as module
from turbort.registry import Registry
from turbort.target import Target


class Opened(Exception):
    """Ends the verification where its first session begins."""


def test_the_second_device_of_a_backend(monkeypatch):
    seen = []

    def opened(*_, on, **__):
        seen.append(on)
        raise Opened

    monkeypatch.setattr(module.Session, "open", opened)
    second = Target("reference", Device("reference", "second", "cpu", "toy", dtypes=frozenset({"float32"})))
    with pytest.raises(Opened):
        module.verify(MODELS["tiny"], load_profile("cpu"), [Job("a star spins", frames=1)], registry=Registry(), target=second)
    assert seen == [second]
