"""Devices and figures of machines that the tests do not run on, each pretended."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import random_batch, tiny_model
from transformers import PreTrainedModel

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.evaluation import figures as evaluation
from hf_spectral_prune.models.loading import choose_device
from hf_spectral_prune.recovery.recover import recovery_arguments
from hf_spectral_prune.utils import environment


@pytest.fixture
def accelerated(monkeypatch):
    """Pretends that torch has an accelerator of some kind."""

    def pretend(kind: str | None) -> None:
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: kind is not None)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: None if kind is None else torch.device(kind))

    return pretend


@pytest.mark.parametrize(("kind", "chosen"), [(None, "cpu"), ("mps", "cpu"), ("cuda", "cuda"), ("xpu", "xpu")])
def test_auto_takes_an_accelerator_that_has_float64(kind, chosen, accelerated):
    accelerated(kind)
    assert choose_device("auto") == torch.device(chosen)
    _, training = recovery_arguments(SpectralPruningArguments())
    assert training["use_cpu"] == (chosen == "cpu")


@pytest.mark.parametrize("name", ["mps", "mps:0"])
def test_mps_is_refused_by_name(name, accelerated):
    accelerated("mps")
    with pytest.raises(ValueError, match=rf"^`device` `{name}` has no float64.*`cpu`\.$"):
        choose_device(name)


def test_a_model_on_mps_is_refused(monkeypatch):
    monkeypatch.setattr(PreTrainedModel, "device", property(lambda model: torch.device("mps")))
    with pytest.raises(ValueError, match=r"lies on Apple's MPS, which has no float64.*`model\.to\(\"cpu\"\)`"):
        SpectralPruner(tiny_model(), SpectralPruningArguments(), [random_batch(4, 32)])


def test_time_is_taken_when_the_accelerator_is_done(accelerated, monkeypatch):
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    accelerated("xpu")
    evaluation._now(torch.device("cpu"))
    assert not waited
    evaluation._now(torch.device("xpu", 0))
    assert waited == [torch.device("xpu", 0)]


# ---- peak memory


@pytest.fixture
def status(tmp_path, monkeypatch):
    """A /proc/self/status of one's own."""
    file = tmp_path / "status"
    monkeypatch.setattr(environment, "Path", lambda _: file)
    return file


def test_peak_memory_where_the_system_does_not_tell_it(status, monkeypatch):
    status.write_text("Name:\tpython\nVmHWM:\t  2048 kB\n")
    assert environment.peak_memory()["host"] == 2048 * 1024
    status.write_text("Name:\tpython\nVmRSS:\t  1024 kB\n")  # as gVisor writes it
    assert environment.peak_memory()["host"] > 2**20
    status.unlink()
    assert environment.peak_memory()["host"] > 2**20
    memory = SimpleNamespace(peak_wset=3 * 2**20)
    monkeypatch.setattr(environment, "resource", None)
    monkeypatch.setattr(environment.psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: memory))
    assert environment.peak_memory()["host"] == 3 * 2**20


def test_module_is_read_where_python_has_no_resource(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    specification = importlib.util.spec_from_file_location("environment_of_windows", Path(environment.__file__))
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    assert module.resource is None
