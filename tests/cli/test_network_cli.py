"""`cria prune --network_class`: plain networks from folders and state dicts, tensors from files, and errors in one line."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import NETWORKS, Vgg, input_batch, tiny_network
from safetensors.torch import save_file

from hf_spectral_prune.cli.inputs_tensors import read_state_dict
from hf_spectral_prune.cli.main import main
from hf_spectral_prune.data.tensors import read_tensors
from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.models.cria.channels import cria_class

VGG = json.dumps(NETWORKS["vgg"][1])


def flags(folder: Path, **more) -> list[str]:
    values = {
        "model_name_or_path": folder / "vgg.pth",
        "network_class": "networks:Vgg",
        "network_args": VGG,
        "tensors_file": folder / "train.npz",
        "output_dir": folder / "out",
        "criterion": "energy",
        "target_scope": "flops",
        "target_reduction": 0.4,
        "round_to": 1,
        "min_channels": 2,
        "units": "channels",
        "self_check": False,
    }
    words = ["--disable_tqdm"]
    for name, value in (values | more).items():
        words += [f"--{name}", str(value)] if value is not None else []
    return words


def one_line(capsys) -> str:
    lines = [line for line in capsys.readouterr().err.strip().splitlines() if line.startswith("cria")]
    assert len(lines) == 1
    return lines[0]


@pytest.fixture
def folder(tmp_path):
    """The state dict of a tiny VGG as DataParallel checkpoints have it, and 40 labelled inputs."""
    state = {f"module.{name}": value for name, value in tiny_network("vgg").state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "vgg.pth")
    batch = input_batch("vgg", 40)
    np.savez(tmp_path / "train.npz", **{name: value.numpy() for name, value in batch.items()})
    return tmp_path


def test_state_dict_is_pruned_saved_checked_and_pruned_again_from_its_folder(folder, capsys):
    assert main(["prune", *flags(folder, self_check=None)]) == 0
    printed = capsys.readouterr().out
    assert "MACs of one image" in printed and "Held-out accuracy" in printed
    report = json.loads((folder / "out" / "pruning_report.json").read_text())
    assert report["self_check"]["plain"]["max_abs_diff"] == 0
    assert report["calibration"]["source"] == "train.npz" and report["calibration"]["num_sequences"] == 32
    assert report["evaluation"]["source"] == "train.npz, held out" and report["evaluation"]["num_sequences"] == 8
    assert report["macs"]["before"] * 0.6 <= report["macs"]["after"] < report["macs"]["before"]
    config = json.loads((folder / "out" / "config.json").read_text())
    assert config["layers"] == NETWORKS["vgg"][1]["layers"] and config["cria_network"] == "networks:Vgg"
    first = cria_class(Vgg).from_pretrained(folder / "out")
    assert num_parameters(first) == report["parameters_after"]

    capsys.readouterr()
    words = ["--network_class", "networks:Vgg", "--tensors_file", str(folder / "train.npz")]
    assert main(["evaluate", "--model_name_or_path", str(folder / "out"), *words]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["parameters"], figures["macs"]) == (report["parameters_after"], report["macs"]["after"])
    assert figures["accuracy"] == report["metrics_after"]["after_accuracy"]  # on the same rows

    for words in (["evaluate", "--calibration", "python_docs", "--model_name_or_path"], ["export", "onnx"], ["export", "gguf"]):
        assert main([*words, str(folder / "out")]) == 2
        assert "holds the plain network `networks:Vgg`" in one_line(capsys)

    again = flags(folder, model_name_or_path=folder / "out", output_dir=folder / "second", network_args=None)
    assert main(["prune", *again]) == 0
    second = json.loads((folder / "second" / "pruning_report.json").read_text())
    assert second["parameters_before"] == report["parameters_after"] > second["parameters_after"]
    assert second["base_model"]["name"] == "out"


@pytest.mark.parametrize("kind", ["folder", "safetensors", "pt"])
def test_every_kind_of_weights_gives_the_same_scores(kind, folder, capsys):
    network = tiny_network("vgg")
    if kind == "folder":
        network.save_pretrained(folder / "weights")
    elif kind == "safetensors":
        save_file(network.state_dict(), folder / "weights.safetensors")
    else:
        torch.save(network.state_dict(), folder / "weights.pt")
    found = []
    cuts = ("target_scope", "target_reduction", "round_to", "min_channels", "self_check")
    more = dict.fromkeys(["output_dir", *cuts])
    arguments = None if kind == "folder" else VGG
    path = folder / ("weights" if kind == "folder" else f"weights.{kind}")
    for source in ({}, {"model_name_or_path": path, "network_args": arguments}):
        assert main(["score", *flags(folder, **more, **source)]) == 0
        found.append(json.loads(capsys.readouterr().out)["scores"])  # and nothing else is printed
    assert found[0] == found[1] and len(found[0]["features.0.channels"]) == 8


def test_other_tensors_to_measure_on_and_recovery(folder):
    save_file(input_batch("vgg", 12, seed=1), folder / "test.safetensors")
    more = {
        "eval_tensors_file": folder / "test.safetensors",
        "num_calibration_samples": 16,
        "recovery": "distill",
        "training_args": json.dumps({"max_steps": 2, "per_device_train_batch_size": 8, "output_dir": str(folder / "trainer")}),
    }
    assert main(["prune", *flags(folder, **more)]) == 0
    report = json.loads((folder / "out" / "pruning_report.json").read_text())
    assert report["evaluation"]["source"] == "test.safetensors" and report["evaluation"]["num_sequences"] == 12
    assert report["calibration"]["num_sequences"] == 16
    assert "before_accuracy" in report["metrics_before"] and report["recovery"]["kept"] in ("recovered", "unrecovered")


@pytest.mark.parametrize(
    ("more", "messages"),
    [
        ({"network_class": "networks"}, ("`package.module:Class`",)),
        ({"network_class": "nowhere_at_all:Net"}, ("`nowhere_at_all` cannot be imported", "No module named")),
        ({"network_class": "networks:Vg"}, ("`networks` has no `Vg`",)),
        ({"network_class": "networks:tiny_network"}, ("torch.nn.Module",)),
        ({"network_class": "networks:Mlp", "network_args": None}, ("does not give a `Mlp`", "network_class")),
        ({"network_args": None}, ("`Vgg` cannot be made", "layers", "`network_args`")),
        ({"network_args": '{"layers": [8, "M", 12, 12, "M", 20]}'}, ("does not give a `Vgg`", "size mismatch", "features")),
        ({"network_args": "[8]"}, ("`network_args` must be a JSON object", '{"depth": 56}')),
        ({"network_args": "{8"}, ("`network_args` is not JSON",)),
        ({"tensors_file": None}, ("`tensors_file`",)),
        ({"tensors_file": "nowhere.npz"}, ("`nowhere.npz` does not exist",)),
        ({"eval_tensors_file": "nowhere.npz"}, ("`eval_tensors_file` `nowhere.npz` does not exist",)),
        ({"model_name_or_path": None}, ("There are no weights", "`model_name_or_path`")),
        ({"model_name_or_path": "nowhere"}, ("`nowhere` does not exist",)),
        ({"network_class": None}, ("`network_args` is for plain PyTorch networks", "`network_class`")),
        ({"image_dir": "images"}, ("`image_dir` is for models of transformers",)),
        ({"dtype": "float16"}, ("`dtype` is `float16`", "float32")),
        ({"calibration": "self"}, ("`calibration` is `self`", "`tensors_file`")),
        ({"target_reduction": 0.98}, ("would empty layers", "min_channels")),
        ({"units": "ffn"}, ("`channels`",)),
    ],
)
def test_commands_that_cannot_work_end_in_one_line(more, messages, folder, capsys):
    assert main(["prune", *flags(folder, **more)]) == 2
    line = one_line(capsys)
    for message in messages:
        assert message in line, line
    assert not (folder / "out").exists()


class Harm:
    """What a pickle can do."""

    def __reduce__(self):
        return (Path.touch, (Path("harmed"),))


def write_harm(path: Path) -> None:
    torch.save({"state_dict": tiny_network("vgg").state_dict(), "other": Harm()}, path)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.pth", write_harm, "holds more than tensors"),
        ("a.pt", lambda path: torch.save(tiny_network("vgg"), path), "Save `network.state_dict()`"),
        ("a.bin", lambda path: path.write_bytes(pickle.dumps(Harm())), "holds more than tensors"),
        ("a.pth", lambda path: path.write_bytes(b""), "a.pth"),
        ("a.pth", lambda path: path.write_bytes(b"PK\x03\x04 and no more"), "cannot be read"),
        ("a.pth", lambda path: torch.save([torch.zeros(2)], path), "holds no state dict"),
        ("a.pth", lambda path: torch.save({"epoch": 3}, path), "holds no state dict"),
        ("a.safetensors", lambda path: path.write_bytes(b"no header"), "cannot be read"),
        ("a.onnx", lambda path: path.write_bytes(b"x"), "is no file of weights"),
        ("a", lambda path: path.mkdir(), "has no `model.safetensors`"),
    ],
)
def test_unsafe_and_broken_weights_are_refused_in_one_line_and_run_no_code(name, write, message, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    write(folder / name)
    assert main(["prune", *flags(folder, model_name_or_path=folder / name)]) == 2
    assert message in one_line(capsys)
    assert not (folder / "harmed").exists() and not (folder / "out").exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"inputs": np.zeros((4, 3, 16, 16), np.float32)}, "no array `pixel_values`"),
        ({"pixel_values": np.zeros((4, 3, 16, 16), np.uint8)}, "torch.uint8"),
        ({"pixel_values": np.zeros((0, 3, 16, 16), np.float32)}, "(0, 3, 16, 16)"),
        ({"pixel_values": np.zeros((4, 3, 16, 16), np.float32), "labels": np.zeros(3, np.int64)}, "`labels`"),
        ({"pixel_values": np.zeros((4, 3, 16, 16), np.float32), "labels": np.zeros(4)}, "`labels`"),
        ({"pixel_values": np.array([{}], dtype=object)}, "cannot be read"),
        ({"pixel_values": np.zeros((4, 5, 16, 16), np.float32)}, "fails on an input of shape (1, 5, 16, 16) in `features.0`"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_in_one_line(arrays, message, folder, capsys):
    np.savez(folder / "other.npz", **arrays)
    assert main(["prune", *flags(folder, tensors_file=folder / "other.npz")]) == 2
    assert message in one_line(capsys)
    assert not (folder / "out").exists()


def test_readers_give_back_what_was_written(tmp_path):
    network, batch = tiny_network("mlp"), input_batch("mlp", 5)
    np.savez(tmp_path / "a.npz", pixel_values=batch["pixel_values"].numpy())
    save_file({**batch, "labels": batch["labels"].int()}, tmp_path / "a.safetensors")
    for name, labels in (("a.npz", None), ("a.safetensors", batch["labels"])):
        found = read_tensors(str(tmp_path / name), "tensors_file")
        assert torch.equal(found[0], batch["pixel_values"])
        assert found[1] is None if labels is None else torch.equal(found[1], labels)
    # A network whose own layer is called `module` keeps its names.
    state = {"module.weight": torch.ones(2), "last.weight": torch.zeros(2)}
    torch.save(state, tmp_path / "b.pt")
    assert set(read_state_dict(tmp_path / "b.pt")) == set(state)
    torch.save({f"module.{name}": value for name, value in network.state_dict().items()}, tmp_path / "c.th")
    network.load_state_dict(read_state_dict(tmp_path / "c.th"))
