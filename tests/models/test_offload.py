"""Models larger than memory: layers on the disk give the plan and the weights of the same model in memory."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import refused, tiny_model, tiny_seq2seq
from larger_than_memory import KILLED
from safetensors.torch import load_file

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.arguments import ModelArguments
from hf_spectral_prune.cli import main
from hf_spectral_prune.models.families import layers_of
from hf_spectral_prune.models.loading import load_model
from hf_spectral_prune.models.offload import is_offloaded, resident, rewritten

OPTIONS = {"target_reduction": 0.3, "round_to": 4, "disable_tqdm": True}


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def load(tmp_path: Path, *, offloaded: bool = True):
    run = ModelArguments(model_name_or_path=str(tmp_path / "dense"), device="cpu")
    return load_model(run, str(tmp_path / "offload") if offloaded else None)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("llama", {"compensation": "none", "num_rounds": 2, "stop_metric": "eval_perplexity", "stop_drop": 9e9}),
        ("llama", {"layout": "per_layer", "compensation": "none", "num_rounds": 2}),
        ("qwen2-tied", {"criterion": "energy", "units": ["ffn"]}),
        ("gemma3-biases", {"layout": "per_layer", "allocation": "scores", "criterion": "magnitude"}),
        ("opt", {"units": ["ffn"]}),
        ("gpt2", {}),
    ],
)
def test_layers_on_the_disk_end_as_they_would_in_memory(family, options, tmp_path, batches):
    tiny_model(family).save_pretrained(tmp_path / "dense", max_shard_size="20KB")
    found = {}
    for place in ("memory", "disk"):
        model = load(tmp_path, offloaded=place == "disk")
        assert is_offloaded(model) == (place == "disk")
        args = SpectralPruningArguments(**OPTIONS | options, output_dir=str(tmp_path / place), self_check=False)
        pruner = SpectralPruner(model, args, batches, batches[:1])
        found[place] = pruner.prune()
        pruner.save_model()
        assert is_offloaded(pruner.model) == (place == "disk")
    assert found["disk"].plan.kept == found["memory"].plan.kept
    assert found["disk"].report.metrics_after == found["memory"].report.metrics_after
    expected, weights = weights_in(tmp_path / "memory"), weights_in(tmp_path / "disk")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())


def test_no_more_than_one_layer_is_in_memory(tmp_path, batches, monkeypatch):
    tiny_model().save_pretrained(tmp_path / "dense")
    model, most = load(tmp_path), [0]
    for layer in layers_of(model):
        for module in layer.modules():

            def count(*_args):
                here = [any(not value.is_meta for value in layer.parameters()) for layer in layers_of(model)]
                most[0] = max(most[0], sum(here))

            module.register_forward_hook(count)
    SpectralPruner(model, SpectralPruningArguments(**OPTIONS), batches).prune()
    assert most == [1]


def test_what_is_changed_is_read_from_then_on_and_goes_with_the_model(tmp_path):
    tiny_model().save_pretrained(tmp_path / "dense")
    model, name = load(tmp_path), "mlp.down_proj.weight"
    layer = layers_of(model)[1]
    with rewritten(model, 1), torch.no_grad():
        layer.get_parameter(name).zero_()
    with resident(model, 1), resident(model, 1):
        assert not layer.get_parameter(name).any()
    assert layer.get_parameter(name).is_meta
    assert load(tmp_path).get_submodule("model.layers.1.mlp.down_proj")(torch.ones(1, 24)).any()
    assert len(list((tmp_path / "offload").glob("cut-layers-*/"))) == 1
    del model, layer
    gc.collect()
    assert not list((tmp_path / "offload").iterdir())


def test_what_a_killed_run_left_goes_and_what_another_writes_stays(tmp_path):
    tiny_model().save_pretrained(tmp_path / "dense")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name, process in (("killed", dead.pid), ("running", os.getpid())):
        (tmp_path / "offload" / f"cut-layers-{name}").mkdir(parents=True)
        (tmp_path / "offload" / f"cut-layers-{name}" / "0.safetensors").write_bytes(b"0")
        (tmp_path / "offload" / f"cut-layers-{name}.lock").write_text(f"{process}\n{socket.gethostname()}\n")
    model = load(tmp_path)
    with rewritten(model, 1):
        pass
    del model
    gc.collect()
    assert {path.name for path in (tmp_path / "offload").iterdir()} == {"cut-layers-running", "cut-layers-running.lock"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"compensation": "least_squares"}, '`compensation="least_squares"`'),
        ({"criterion": "taylor"}, "the criterion `taylor`"),
        ({"criterion_args": {"signals": "loss"}}, "the criterion `spectral`"),
        ({"layout": "per_layer"}, '`allocation="search"` with'),
        ({"allocation": "loss_curves"}, '`allocation="loss_curves"` with `compensation="sequential"`'),
        ({"save_strategy": "steps", "output_dir": "out"}, '`save_strategy="steps"`'),
    ],
)
def test_what_needs_all_weights_is_refused_before_work(options, told, tmp_path, batches):
    tiny_model().save_pretrained(tmp_path / "dense")
    model = load(tmp_path)
    refused(lambda: SpectralPruner(model, SpectralPruningArguments(**OPTIONS | options), batches), told, "lie on the disk")


GIVING_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
WIDE = {"hidden_size": 1024, "intermediate_size": 512, "num_hidden_layers": 40, "head_dim": 64}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_model_twice_the_memory_is_pruned_as_in_memory(tmp_path, tokenizer):
    """The limit is on private memory, in which weights that are mapped from their files do not count; that it is kept shows where
    it is too small for a single layer. glibc is told to give back what is freed: the gaps of its heap took 60 to 270 MiB by
    chance."""
    model = tiny_model(**WIDE)
    size = sum(value.nbytes for value in model.parameters())
    headroom = size // 2 // 2**20
    model.save_pretrained(tmp_path / "dense", max_shard_size="15MB")
    tokenizer.save_pretrained(tmp_path / "dense")
    (tmp_path / "text.txt").write_text(" ".join(f"w{3 + index * index % 90}" for index in range(400)))
    flags = {"model_name_or_path": tmp_path / "dense", "calibration_file": tmp_path / "text.txt", "max_seq_length": 16}
    flags |= {"num_calibration_samples": 8, "num_eval_samples": 2, "device": "cpu", "disable_tqdm": "true", "self_check": "false"}
    flags |= {"max_moment_gib": 0.01}

    def prune(name: str, room: int, **more) -> tuple[int, str]:
        words = [word for key, value in (flags | more).items() for word in (f"--{key}", str(value))]
        command = [sys.executable, str(Path(__file__).parents[1] / "larger_than_memory.py"), str(room), "prune", *words]
        log = tmp_path / f"{name}.log"
        with log.open("w") as output:
            command += ["--output_dir", str(tmp_path / name)]
            done = subprocess.run(command, stdout=output, stderr=output, check=False, env=os.environ | GIVING_BACK)
        return done.returncode, log.read_text()

    del model
    assert prune("killed", 16, offload_folder=tmp_path / "killed_offload")[0] == KILLED
    for name, room, more in (("memory", 100 * headroom, {}), ("disk", headroom, {"offload_folder": tmp_path / "offload"})):
        code, said = prune(name, room, **more)
        assert code == 0, said[-2000:]
    assert (tmp_path / "disk" / "pruning_plan.json").read_bytes() == (tmp_path / "memory" / "pruning_plan.json").read_bytes()
    expected, weights = weights_in(tmp_path / "memory"), weights_in(tmp_path / "disk")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())


@pytest.mark.parametrize(("make", "family"), [(tiny_model, "mixtral"), (tiny_seq2seq, "bart")])
def test_layers_that_are_not_read_one_at_a_time_are_told_before_any_is(make, family, tmp_path):
    make(family).save_pretrained(tmp_path / "dense")
    with pytest.raises(ValueError, match=f"`{family}`.*Leave `offload_folder` out"):
        load(tmp_path)
    assert not (tmp_path / "offload").exists()


def test_a_file_in_the_place_of_the_folder_is_told_before_any_work(tmp_path, capsys):
    tiny_model().save_pretrained(tmp_path / "model")
    (tmp_path / "file").write_text("kept")
    capsys.readouterr()
    words = ["prune", str(tmp_path / "model"), "--calibration", "self", "--output_dir", str(tmp_path / "out")]
    assert main([*words, "--offload_folder", str(tmp_path / "file")]) == 2
    assert "`offload_folder`" in (told := capsys.readouterr().err.strip()) and "\n" not in told
    assert (tmp_path / "file").read_text() == "kept" and not (tmp_path / "out").exists()
