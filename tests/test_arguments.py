"""Options: strategies that do nothing are refused, and values from YAML and JSON are checked by the type hints."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hf_spectral_prune import SpectralPruningArguments
from hf_spectral_prune.cli.arguments import RunArguments
from hf_spectral_prune.cli.parsing import parse
from hf_spectral_prune.cli.prune import PresetArguments
from hf_spectral_prune.criteria import known_criteria
from hf_spectral_prune.recovery.recover import recovery_arguments
from hf_spectral_prune.utils.option_types import fitted


@pytest.mark.parametrize("name", ["logging_strategy", "eval_strategy", "save_strategy"])
@pytest.mark.parametrize("value", ["epoch", IntervalStrategy.EPOCH, "best", False])
def test_strategies_that_would_do_nothing_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"`{name}` is `{getattr(value, 'value', value)}`.*`no`, `steps`.*A step is a round"):
        SpectralPruningArguments(output_dir="out", **{name: value})


def test_enums_of_transformers_are_strategies():
    args = SpectralPruningArguments(
        output_dir="out",
        eval_strategy=IntervalStrategy.STEPS,
        logging_strategy=IntervalStrategy.NO,
        save_strategy=SaveStrategy.STEPS,
    )
    assert (args.eval_strategy, args.logging_strategy, args.save_strategy) == ("steps", "no", "steps")
    assert '"eval_strategy": "steps"' in args.to_json_string()


def test_help_names_every_criterion():
    (entry,) = (entry for entry in dataclasses.fields(SpectralPruningArguments) if entry.name == "criterion")
    assert set(known_criteria()) <= set(re.findall(r"\w+", entry.metadata["help"]))


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (8.0, int, 8),
        ("1e3", int, 1000),
        ("1e-4", float, 1e-4),
        (1, float, 1),
        ("no", bool, False),
        (1, bool, True),
        (False, Literal["no", "steps"], "no"),
        (False, IntervalStrategy | str, "no"),
        (IntervalStrategy.EPOCH, IntervalStrategy | str, IntervalStrategy.EPOCH),
        ("3", str | float, "3"),
        ("3", float | str, "3"),
        (None, int | None, None),
        (["1", 2.0], list[int] | None, [1, 2]),
        (("q", "k"), list[str], ["q", "k"]),
        ({"a": 1}, dict[str, Any] | str | None, {"a": 1}),
        (Path("out"), str | None, Path("out")),
        (os, dataclasses.Field | None, os),
    ],
)
def test_values_are_taken_as_the_hint_wants_them(value, hint, expected):
    found = fitted("x", value, hint)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint", "wanted"),
    [
        (2.5, int, "a whole number"),
        (True, int, "a whole number"),
        (float("inf"), int, "a whole number"),
        (float("nan"), int | None, "a whole number or null"),
        ([0.2], float, "a number"),
        (True, float, "a number"),
        (None, float, "a number"),
        (2, bool, "true or false"),
        ("maybe", bool, "true or false"),
        (3, str, "text"),
        ("ffn", list[str], "a list, like `[a, b]`"),
        ([1.5], list[int], "a list, like `[1, 2]`"),
        ("a", Literal["no", "steps"], "one of `no`, `steps`"),
        (3, IntervalStrategy | str, "one of `no`, `steps`, `epoch` or text"),
        ([1], dict[str, Any] | str | None, "a table of `name: value` or text or null"),
    ],
)
def test_values_of_another_type_are_told(value, hint, wanted):
    with pytest.raises(ValueError, match=re.escape(f"`x` is {value!r}; it must be {wanted}.")):
        fitted("x", value, hint)


def test_a_token_is_never_shown():
    with pytest.raises(ValueError, match=r"`hub_token` is a int; it must be text"):
        fitted("hub_token", 123456, str)
    args = SpectralPruningArguments(hub_token="hf_secret", training_args={"hub_token": "hf_secret", "max_steps": 5})
    for shown in (repr(args), str(args), args.to_json_string()):
        assert "hf_secret" not in shown and "max_steps" in shown


def test_a_preset_is_a_set_of_options_over_which_others_win():
    paper = SpectralPruningArguments.from_preset("paper", num_rounds=3)
    assert (paper.num_rounds, paper.criterion_options, paper.compensation) == (3, {"modes": 0.1}, "none")
    paper.criterion_args["modes"] = 0.5
    assert SpectralPruningArguments.from_preset("paper").criterion_options == {"modes": 0.1}
    with pytest.raises(ValueError, match="`preset` is `papers`; choose from `paper`, `quality`, `fast`"):
        SpectralPruningArguments.from_preset("papers")


@pytest.mark.parametrize("units", ["ffn heads", "ffn,heads", ["ffn", "heads"]])
def test_units_are_a_list_or_one_text(units):
    assert SpectralPruningArguments(units=units).units == ["ffn", "heads"]


# ---- recipes


def test_flags_win_over_the_recipe_and_that_over_the_preset(tmp_path):
    (tmp_path / "recipe.yaml").write_text("preset: paper\nunits: [ffn]\nnum_rounds: 4\nmax_seq_length: 64\n")
    words = [str(tmp_path / "recipe.yaml"), "--recovery", "none"]
    args, run, _ = parse([SpectralPruningArguments, RunArguments, PresetArguments], "prune", "", words)
    assert (args.num_rounds, args.recovery, args.compensation, args.units) == (4, "none", "none", ["ffn"])
    assert args.criterion_options == {"modes": 0.1}
    assert args.max_seq_length == run.max_seq_length == 64  # one option of both
    args, _, _ = parse([SpectralPruningArguments, RunArguments, PresetArguments], "prune", "", ["--preset", "paper"])
    assert (args.num_rounds, args.recovery) == (10, "full")


def recipe(tmp_path, text: str) -> list[Any]:
    (tmp_path / "recipe.yaml").write_text(text)
    return parse([SpectralPruningArguments, RunArguments], "prune", "", [str(tmp_path / "recipe.yaml")])


def test_numbers_of_yaml_1_2_are_numbers(tmp_path):
    args, run = recipe(
        tmp_path,
        "ridge: 1e-3\ntarget_reduction: .25\nnum_rounds: 4.0\nseed: 1e3\nrun_name: 1e\ndtype: float32\neval_strategy: no\n"
        "report_to: none\nhub_model_id: me/1e-4\ndataset_split: 'train'\n"
        "training_args: {learning_rate: 1e-4, weight_decay: 2.E+1, max_steps: 7, metric_for_best_model: '1e-4'}\n",
    )
    assert (args.ridge, args.target_reduction, args.num_rounds, args.seed, args.eval_strategy) == (1e-3, 0.25, 4, 1000, "no")
    assert isinstance(args.num_rounds, int) and isinstance(args.seed, int)
    assert (args.run_name, args.hub_model_id, args.report_to, run.dtype) == ("1e", "me/1e-4", "none", "float32")
    found = args.training_args
    assert found == {"learning_rate": 1e-4, "weight_decay": 20.0, "max_steps": 7, "metric_for_best_model": "1e-4"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("target_reduction: null", "`target_reduction` is None; it must be a number"),
        ("target_reduction: [0.2]", "`target_reduction` is [0.2]; it must be a number"),
        ("target_reduction: many", "`target_reduction` is 'many'; it must be a number"),
        ("num_rounds: 2.5", "`num_rounds` is 2.5; it must be a whole number"),
        ("round_to: {a: 1}", "`round_to` is {'a': 1}; it must be a whole number"),
        ("units: ffn", "`units` is 'ffn'; it must be a list, like `[a, b]`"),
        ("units: [3]", "`units` is [3]; it must be a list"),
        ("criterion: 3", "`criterion` is 3; it must be text"),
        ("layout: mixed", "`layout` is 'mixed'; it must be one of `uniform`, `per_layer`"),
        ("dtype: [float32]", "`dtype` is ['float32']; it must be one of `auto`"),
        ("self_check: perhaps", "`self_check` is 'perhaps'; it must be true or false"),
        ("seed: 2020-01-01", "`seed` is datetime.date(2020, 1, 1); it must be a whole number"),
        ("training_args: 5", "`training_args` is 5; it must be a table of `name: value` or text or null"),
        ("max_seq_length: big", "`max_seq_length` is 'big'; it must be a whole number"),
    ],
)
def test_recipe_values_of_another_type_are_told_with_key_and_file(line, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"The recipe `{tmp_path / 'recipe.yaml'}`: {message}")):
        recipe(tmp_path, f"{line}\n")


def test_a_local_folder_of_data_is_named_as_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "mytext").mkdir(parents=True)
    assert RunArguments(dataset_name="data/mytext").dataset_name == "./data/mytext"
    for name in ("./data/mytext", str(tmp_path / "data"), "Salesforce/wikitext", None):
        assert RunArguments(dataset_name=name).dataset_name == name


# ---- options of the recovery


def recovering(**fields: Any) -> SpectralPruningArguments:
    return SpectralPruningArguments(recovery="full", **fields)


def test_text_that_spells_a_number_trains(tmp_path):
    given = {"learning_rate": "1e-4", "max_steps": "3", "save_strategy": False, "resume_from_checkpoint": True}
    _, training = recovery_arguments(recovering(training_args=given, output_dir=str(tmp_path)))
    args = TrainingArguments(**training | {"use_cpu": True})
    assert (args.learning_rate, args.max_steps, args.save_strategy) == (1e-4, 3, "no")
    assert args.resume_from_checkpoint is True
    recovery, _ = recovery_arguments(recovering(recovery_args='{"lora_r": "4", "lora_target_modules": ["q_proj"]}'))
    assert (recovery.lora_r, recovery.lora_target_modules) == (4, ["q_proj"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"training_args": '{"learning_rate": "fast"}'}, "`training_args`: `learning_rate` is 'fast'; it must be a number"),
        ({"training_args": {"learning_rate": None}}, "`training_args`: `learning_rate` is None; it must be a number"),
        ({"training_args": {"max_steps": 2.5}}, "`training_args`: `max_steps` is 2.5; it must be a whole number"),
        ({"training_args": {"metric_for_best_model": 5}}, "`metric_for_best_model` is 5; it must be text or null"),
        ({"recovery_args": {"lora_r": [8]}}, "`recovery_args`: `lora_r` is [8]; it must be a whole number"),
        ({"recovery_args": {"lora_target_modules": "q_proj"}}, "`lora_target_modules` is 'q_proj'; it must be a list"),
    ],
)
def test_options_of_another_type_are_told_before_the_run(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        recovery_arguments(recovering(**options))


def test_home_in_the_name_of_the_result_is_the_users(monkeypatch, tmp_path):
    """Trainer reads it so; a folder called `~` would invite a disaster."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert SpectralPruningArguments(output_dir="~/cria").output_dir == str(tmp_path / "cria")


def test_an_empty_name_is_no_folder():
    with pytest.raises(ValueError, match="`output_dir` is empty"):
        SpectralPruningArguments(output_dir="")


def test_numbers_of_numpy_and_paths_can_be_written_into_the_report(tmp_path):
    args = SpectralPruningArguments(
        output_dir=tmp_path / "a",
        target_reduction=np.float64(0.2),
        seed=np.int64(3),
        criterion_args={"num_neighbors": np.int64(4)},
        training_args={"output_dir": tmp_path, "max_steps": np.int64(5)},
    )
    assert json.loads(args.to_json_string())["seed"] == 3
    assert args.training_args == {"output_dir": str(tmp_path), "max_steps": 5} and args.criterion_args == {"num_neighbors": 4}
