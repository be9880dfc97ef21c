"""What the command line says of an exception that nobody foresaw, and of those that libraries raise."""

from __future__ import annotations

import json

import pytest

from hf_spectral_prune.cli import main
from hf_spectral_prune.utils.words import did_you_mean, first_line, in_a_line


def raising(monkeypatch, error: Exception) -> None:
    """Makes `cria export gguf FOLDER` raise this from inside a library function, which is called by `read_config`."""

    def read(text: str) -> None:
        raise error

    monkeypatch.setattr(json, "loads", read)


@pytest.fixture
def words(tmp_path) -> list[str]:
    (tmp_path / "config.json").write_text("{}")
    return ["export", "gguf", str(tmp_path)]


def line(capsys) -> str:
    (said,) = capsys.readouterr().err.splitlines()
    return said


def test_unforeseen_exception_is_one_line_with_type_and_place_that_asks_for_a_report(words, monkeypatch, capsys):
    raising(monkeypatch, ZeroDivisionError("division by zero"))
    assert main(words) == 1
    said = line(capsys)
    assert said.startswith("cria export: ZeroDivisionError in utils/files.py:") and "division by zero" in said
    assert "please report" in said and "CRIA_TRACEBACK=1" in said


def test_whole_traceback_is_there_on_demand(words, monkeypatch):
    monkeypatch.setenv("CRIA_TRACEBACK", "1")
    raising(monkeypatch, ZeroDivisionError("division by zero"))
    with pytest.raises(ZeroDivisionError):
        main(words)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("the disk is gone"), ["the disk is gone", "OSError in utils/files.py:"]),
        (MemoryError(), ["not enough memory", "calibration_batch_size", "utils/files.py:"]),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9"),
            ["not enough memory", "tried 9"],
        ),
        (ModuleNotFoundError("No module named 'nothing'", name="nothing"), ["No module named", "pip install nothing"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_user_can_mend_is_exit_2(words, monkeypatch, capsys, error, said):
    raising(monkeypatch, error)
    assert main(words) == 2
    found = line(capsys)
    for word in said:
        assert word in found


def test_a_line_is_of_bounded_length_and_moves_no_cursor(words, monkeypatch, capsys):
    raising(monkeypatch, KeyError("\x1b[2Jred\n" + "x" * 10**7))
    assert main(words) == 1
    said = line(capsys)
    assert len(said) < 2000 and "\x1b" not in said


@pytest.mark.parametrize(
    ("word", "known", "near"),
    [
        ("pruned", ["prune", "push"], "prune"),
        ("target_reducton", ["target_reduction", "target_scope"], "target_reduction"),
        ("lama", ["llama", "bert"], "llama"),
        ("marian", ["cria_qwen3", "cria_granite", "mistral"], None),
        ("text", ["self_check", "seed"], None),
    ],
)
def test_only_near_spellings_are_offered(word, known, near):
    assert did_you_mean(word, known) == (f" Did you mean `{near}`?" if near else "")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--num_rounds", "2.5"], "`--num_rounds` is '2.5'. Give a whole number."),
        (["--ridge="], "`--ridge` is ''. Give a number."),
        (["--self_check", "perhaps"], "`--self_check` is 'perhaps'. Give `True` or `False`."),
        (["--layout", "round"], "`--layout` is 'round'. Choose from `uniform`, `per_layer`."),
        (["--num-rounds"], "`--num_rounds` has no value. Give one behind it."),
    ],
)
def test_a_flag_with_the_wrong_value_says_what_to_give(words, line, capsys):
    assert main(["prune", "model", *words]) == 2
    assert capsys.readouterr().err == f"cria prune: {line}\n"


def test_words_of_others_end_without_a_stop_of_their_own():
    for words in (first_line, in_a_line):
        assert words(ValueError("It is broken.")) == "It is broken"
        assert words(ValueError("It goes on...")) == "It goes on..."
        assert words(ValueError()) == "ValueError"
