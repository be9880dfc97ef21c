"""A flag that a command offers is one that it reads, and an option that its kind of input does not read is told."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys

import numpy as np
import pytest
from conftest import tiny_encoder
from networks import NETWORKS, input_batch, tiny_network
from products import only
from safetensors.torch import save_file
from test_cli import fails
from vision import image_folder, processor_of, tiny_vision

from hf_spectral_prune.cli.arguments import RunArguments
from hf_spectral_prune.cli.main import main
from hf_spectral_prune.cli.parsing import parse
from hf_spectral_prune.cli.score import ScoringArguments

SMALL = ["--num_calibration_samples", "8"]
LENGTH = ["--max_seq_length", "32"]


@pytest.fixture
def inputs(folder, tokenizer):
    """Beside the tiny model and its text: a classifier with its table, a vision model with images, a network with tensors."""
    tiny_encoder("bert", num_labels=2, id2label={0: "even", 1: "odd"}, label2id={"even": 0, "odd": 1}).save_pretrained(
        folder / "bert"
    )
    tokenizer.save_pretrained(folder / "bert")
    rows = [{"text": f"w{3 + row} w{5 + row}", "label": "odd" if row % 2 else "even"} for row in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny_vision("resnet-bottleneck").save_pretrained(folder / "resnet")
    processor_of("resnet-bottleneck").save_pretrained(folder / "resnet")
    image_folder(folder / "images", each=3)
    save_file(tiny_network("vgg").state_dict(), folder / "vgg.safetensors")
    np.savez(folder / "inputs.npz", **{name: value.numpy() for name, value in input_batch("vgg", 40).items()})
    return folder


def runs(folder) -> dict[str, list[str]]:
    """{kind of input: the words that name it}."""
    network = ["--network_class", "networks:Vgg", "--network_args", json.dumps(NETWORKS["vgg"][1])]
    return {
        "text": [str(folder / "model"), "--calibration_file", str(folder / "text.txt"), *LENGTH],
        "labels": [str(folder / "bert"), "--calibration_file", str(folder / "rows.jsonl"), "--label_column", "label", *LENGTH],
        "images": [str(folder / "resnet"), "--image_dir", str(folder / "images")],
        "tensors": [str(folder / "vgg.safetensors"), *network, "--tensors_file", str(folder / "inputs.npz")],
    }


def recorded(cls: type, found: set[str]) -> type:
    """The class, with the names of what is read of its objects noted; copies and checks of the options read nothing."""

    def read(self, name):
        caller = sys._getframe(1)
        if caller.f_code.co_name not in ("replace", "_replace", "_checked") and not caller.f_code.co_name.startswith("check"):
            found.add(name)
        return object.__getattribute__(self, name)

    return dataclasses.dataclass(type(cls.__name__, (cls,), {"__getattribute__": read, "__post_init__": lambda self: None}))


@pytest.mark.parametrize("command", only(["score", "evaluate"], ["score", "evaluate", "compare", "ablate"]))
def test_every_flag_is_read(command, inputs, monkeypatch, capsys):
    found: set[str] = set()
    offered: set[str] = set()

    def reading(types, *rest):
        values = parse(types, *rest)
        for value in values:
            if isinstance(value, (RunArguments, ScoringArguments)):
                offered.update({entry.name for entry in dataclasses.fields(value)} - value.unread)
                object.__setattr__(value, "__class__", recorded(type(value), found))
        return values

    monkeypatch.setattr(importlib.import_module(f"hf_spectral_prune.cli.{command}"), "parse", reading)
    more = {
        "score": ["--criterion", "energy", "--disable_tqdm"],
        "evaluate": [],
        "compare": ["--criteria", "energy", "--reductions", "0.1", "--recoveries", "full", "--disable_tqdm"],
        "ablate": ["--criteria", "energy", "--units_per_layer", "2", "--num_layers", "1", "--disable_tqdm"],
    }[command]
    kinds = runs(inputs)
    for kind in ("text", "labels") if command in ("compare", "ablate") else kinds:
        place = ["--output_dir", str(inputs / kind)] if command in ("compare", "ablate") else []
        train = ["--training_args", '{"max_steps": 1}'] if command == "compare" else []
        assert main([command, *kinds[kind], *SMALL, *more, *place, *train]) == 0, capsys.readouterr().err
    assert offered - found == set()


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        *(("evaluate", name) for name in ("resume_from_checkpoint", "recovery_file", "target_reduction")),
        *(("score", name) for name in ("resume_from_checkpoint", "target_reduction", "eval_file", "metric")),
        *(("compare", name) for name in ("resume_from_checkpoint", "image_dir")),
        *(("ablate", name) for name in ("network_class", "recovery_file")),
    ],
)
def test_a_flag_that_a_command_would_not_read_is_told(command, flag, folder, capsys):
    fails(capsys, [command, str(folder / "model"), f"--{flag}", "0.1"], f"`--{flag}` is no flag", "`cria prune` reads it")
    (folder / "recipe.yaml").write_text(f"{flag}: x\n")
    fails(capsys, [command, str(folder / "recipe.yaml")], f"unknown key `{flag}`", "`cria prune` reads it")


@pytest.mark.parametrize(
    ("kind", "more", "messages"),
    [
        ("text", {"image_column": "x"}, ["`image_column` is for images", "text"]),
        ("text", {"dataset_split": "test"}, ["`dataset_split` is for `dataset_name`"]),
        ("text", {"dataset_config_name": "x"}, ["`dataset_config_name` is for `dataset_name`"]),
        ("images", {"eval_file": "text.txt"}, ["`eval_file` is for text", "images"]),
        ("images", {"max_seq_length": "9"}, ["`max_seq_length` is for text"]),
        ("images", {"text_column": "x"}, ["`text_column` is for text"]),
        ("tensors", {"text_column": "x"}, ["`text_column` is for text", "a plain network"]),
        ("tensors", {"image_column": "x"}, ["`image_column` is for images"]),
    ],
)
def test_an_option_of_another_kind_of_input_is_told(kind, more, messages, inputs, capsys):
    ((name, value),) = more.items()
    words = [*runs(inputs)[kind], f"--{name}", str(inputs / value) if name == "eval_file" else value]
    for command in ("evaluate", "score", "prune"):
        if (command, name) != ("score", "eval_file"):
            fails(capsys, [command, *words, *(["--output_dir", str(inputs / "out")] if command == "prune" else [])], *messages)


def test_a_text_column_without_a_table_is_told(folder, capsys):
    words = [str(folder / "model"), "--calibration", "python_docs", "--text_column", "body"]
    fails(capsys, ["evaluate", *words], "`text_column` is for data sets and tables")


def test_options_of_a_recovery_that_a_comparison_does_not_have_are_told(folder, capsys):
    words = [
        "compare",
        str(folder / "model"),
        "--calibration_file",
        str(folder / "text.txt"),
        "--output_dir",
        str(folder / "out"),
    ]
    fails(capsys, [*words, "--training_args", '{"max_steps": 1}'], "`training_args` is for a recovery", "`recoveries` is `none`")
