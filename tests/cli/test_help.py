"""What a person types without reading: the model as a word, other tools' names, help."""

import dataclasses
import re

import pytest

from hf_spectral_prune.arguments import SpectralPruningArguments
from hf_spectral_prune.cli import main
from hf_spectral_prune.cli.arguments import RunArguments
from hf_spectral_prune.cli.help import FIRST, GROUPS
from hf_spectral_prune.cli.parsing import OTHER_NAMES, parse
from hf_spectral_prune.cli.prune import PresetArguments

FIELDS = {entry.name for cls in (SpectralPruningArguments, RunArguments, PresetArguments) for entry in dataclasses.fields(cls)}
TYPES = [SpectralPruningArguments, RunArguments]


def read(*words: str) -> tuple[SpectralPruningArguments, RunArguments]:
    args, run = parse(TYPES, "prune", "", words)
    return args, run


def test_the_model_is_the_word_without_a_flag(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model_name_or_path: other\ntarget_reduction: 0.3\ncalibration: python_docs\n")
    args, run = read("org/name", str(recipe), "--seed", "3")
    assert run.model_name_or_path == "org/name" and (args.target_reduction, args.seed) == (0.3, 3)
    assert read(str(recipe))[1].model_name_or_path == "other"


def test_a_name_that_is_no_folder_is_one_line_of_ours(capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for command in ("prune", "compare", "ablate"):  # some read the tokenizer first
        assert main([command, "no-such-model", "--output_dir", "out", "--calibration", "python_docs"]) == 2
        assert "`no-such-model` is no folder here, and the Hub cannot be reached" in capsys.readouterr().err


def test_scores_are_written_to_no_file_and_the_demo_can_replace_a_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["score", "model", "--calibration", "python_docs", "--output_dir", str(tmp_path / "file")]) == 2
    assert "is a file. Name a folder." in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["demo", "--help"])
    assert "--overwrite_output_dir" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["a", "b"], "`b` is too much"),
        (["a.yaml", "b.yml"], "`b.yml` is too much"),
        (["a", "--model_name_or_path", "b"], "named twice"),
        (["a", "--sparsity", "0.3"], "`--sparsity` is called `--target_reduction` here"),
        (["--model=x"], "`--model` is called `--model_name_or_path` here"),
        (["a", "--criterion", "wanda"], "`energy`"),
        (["a", "--criterion", "flap"], "`fluctuation`"),
    ],
)
def test_what_is_wrong_is_named(words, told, capsys):
    assert main(["prune", *words, "--output_dir", "out"]) == 2
    assert told in capsys.readouterr().err


def test_other_tools_names_are_not_ours_and_lead_to_ours():
    assert not set(OTHER_NAMES) & FIELDS
    assert set(OTHER_NAMES.values()) <= FIELDS


def test_help_is_short_and_help_all_is_whole_and_in_groups(capsys):
    for words in (["--help"], ["--help", "all"]):
        with pytest.raises(SystemExit) as stopped:
            main(["prune", *words])
        assert stopped.value.code == 0
    short, whole = capsys.readouterr().out.split("usage: cria prune")[1:]
    shown = set(re.findall(r"^  (?:MODEL, )?--(\w+)", whole, flags=re.MULTILINE))
    assert shown >= FIELDS - {"load_best_model_at_end"}
    assert "Others" not in whole
    assert set(re.findall(r"^  (?:MODEL, )?--(\w+)", short, flags=re.MULTILINE)) == set(FIRST) & FIELDS
    assert len(short.splitlines()) < 70
    assert "(default: None)" not in whole and "--output-dir" not in whole
    assert "Turn `packing` off." in whole


def help_of(capsys, *words: str) -> str:
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    return " ".join(capsys.readouterr().out.split())


def test_help_says_what_a_flag_means_in_this_command(capsys):
    assert "--output_dir OUTPUT_DIR Folder to write scores.json to; without it they are printed." in help_of(capsys, "score")
    compared = help_of(capsys, "compare")
    assert "FLOPs" not in compared and "(default: 0.1 0.2 0.3 0.5)" in compared
    assert "load_best_model_at_end" not in help_of(capsys, "prune", "all"), "the command line takes no callbacks"
    pushed = help_of(capsys, "push")
    assert "Options: --hub_model_id" in pushed and "Others" not in pushed


def test_no_flag_stands_in_two_groups():
    names = [name for group in GROUPS.values() for name in group]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("command", "told", "not_told"),
    [
        ("evaluate", "Data set whose held-out part is measured", "Data set to calibrate on"),
        ("ablate", "Text file to measure the losses on", "before and after"),
    ],
)
def test_a_flag_is_explained_as_the_command_uses_it(command, told, not_told, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert told in shown and not_told not in shown
