"""What a person and a program see of a run: bars on a terminal, figures and the way on at the end, one JSON object."""

import io
import json
import os
import sys

import pytest
import torch
from conftest import tiny_model
from transformers import TrainingArguments, modeling_gguf_pytorch_utils

from hf_spectral_prune import SpectralPruningArguments, recover
from hf_spectral_prune.cli import main
from hf_spectral_prune.cli.screen import ending
from hf_spectral_prune.models.loading_report import quiet_conversion
from hf_spectral_prune.planning.reduction_target import target_words
from hf_spectral_prune.utils.progress import RoundProgress, stage, working


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_stage_has_its_name_total_and_time(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "100")
    for _ in stage("Calibrating", range(3), unit="batches"):
        pass
    with working("Loading"):
        pass
    shown = sys.stderr.getvalue()
    assert "Calibrating" in shown and "3/3 batches" in shown and "Loading" in shown and "1/1" in shown


def test_a_terminal_without_a_window_shows_bars_too(monkeypatch):
    ours, theirs = os.openpty()  # of no rows and no columns
    stream = Terminal()
    stream.fileno = lambda: theirs
    monkeypatch.setattr(sys, "stderr", stream)
    with working("Loading"):
        pass
    os.close(ours)
    os.close(theirs)
    assert "Loading" in stream.getvalue() and "1/1" in stream.getvalue()


@pytest.mark.parametrize(("terminal", "show"), [(io.StringIO, True), (Terminal, False)])
def test_nothing_is_shown_in_a_pipe_or_where_it_is_not_wanted(monkeypatch, terminal, show):
    monkeypatch.setattr(sys, "stderr", terminal())
    for _ in stage("Calibrating", range(3), show=show):
        pass
    with working("Loading", show=show):
        pass
    assert sys.stderr.getvalue() == ""


def test_conversion_of_gguf_files_has_no_bar_of_its_own(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with quiet_conversion():
        assert list(modeling_gguf_pytorch_utils.tqdm(range(3), desc="Converting")) == [0, 1, 2]
    assert not sys.stderr.getvalue()


def test_a_recovery_has_a_bar_with_its_loss_on_a_terminal_and_prints_nothing_in_a_pipe(monkeypatch, capsys, tmp_path):
    rows = [{"input_ids": torch.arange(3, 19), "labels": torch.arange(3, 19)}] * 8
    training = {"max_steps": 2, "logging_steps": 1, "report_to": "none", "use_cpu": True, "save_strategy": "no"}
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        recover(tiny_model(), None, TrainingArguments(str(tmp_path), **training), rows)
        assert ("Recovering (loss" in stream.getvalue()) == stream.isatty()
        assert "it/s" not in stream.getvalue()
    assert not capsys.readouterr().out


def test_rounds_have_a_bar_where_there_are_several(monkeypatch):
    from transformers import TrainerState

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "100")
    for rounds in (1, 2):
        bar = RoundProgress()
        state = TrainerState(max_steps=rounds)
        bar.on_train_begin(None, state, None)
        for state.global_step in range(1, rounds + 1):
            bar.on_log(None, state, None, logs={"parameters": 1000 - state.global_step})
        bar.on_train_end(None, state, None)
        shown = sys.stderr.getvalue()
        assert ("2/2" in shown and "998 parameters" in shown) == (rounds == 2)
        assert bool(shown) == (rounds == 2)


@pytest.mark.parametrize(
    ("scope", "said"),
    [
        ("all", "of all"),
        ("prunable", "parameters of FFN neurons and attention heads"),
        ("non_embedding", "outside the embeddings"),
    ],
)
def test_the_target_is_told_in_numbers(scope, said):
    args = SpectralPruningArguments(target_reduction=0.25, target_scope=scope)
    words = target_words(tiny_model(), args)
    assert words.startswith("Removing 25 % of") and said in words and "at most" in words and "parameters" in words


def prune(folder, capsys, *more: str) -> tuple[str, str]:
    words = ["prune", str(folder / "model"), "--output_dir", str(folder / "out"), "--calibration_file", str(folder / "text.txt")]
    words += ["--max_seq_length", "32", "--num_calibration_samples", "8", "--num_eval_samples", "4", "--round_to", "1"]
    assert main([*words, *more]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_a_run_says_where_its_result_is_and_how_to_load_it(folder, capsys):
    out, err = prune(folder, capsys, "--layout", "per_layer", "--compensation", "none", "--criterion", "magnitude")
    assert "Removing 20 % of" in err and "%|" not in err and "█" not in err
    assert "{" not in err and "Writing model shards" not in err
    code = "\n".join(line[4:] for line in out.splitlines() if line.startswith("    "))
    found: dict = {}
    exec(code, found)
    assert type(found["model"]).__name__ == "CriaLlamaForCausalLM" and found["tokenizer"]
    assert "Not measured: quality on other data and tasks; speed" in out


def test_several_targets_are_told_in_numbers_and_one_of_them_loads_by_the_lines_on_the_screen(folder, capsys):
    out, err = prune(folder, capsys, "--target_reduction", "0.3", "0.1", "--no_self_check", "--criterion", "magnitude")
    assert [line[:13] for line in err.splitlines() if line.startswith("Removing")] == ["Removing 10 %", "Removing 30 %"]
    code = "\n".join(line[4:] for line in out.splitlines() if line.startswith("    "))
    found: dict = {}
    exec(code, found)
    assert found["model"].name_or_path == str(folder / "out" / "reduction-0.1") and "reduction-0.3" in out


def test_a_program_gets_one_json_object(folder, capsys):
    out, _ = prune(folder, capsys, "--json", "--no_self_check", "--criterion", "magnitude")
    figures = json.loads(out)
    assert figures["output_dir"] == str(folder / "out")
    assert figures["parameters_after"] < figures["parameters_before"]
    assert figures["metrics_after"]["after_perplexity"] > 0
    # A note is logged when the run ends, so the figures on the screen leave it out.
    report = folder / "out" / "pruning_report.json"
    report.write_text(json.dumps(json.loads(report.read_text()) | {"notes": ["A note."]}))
    assert "A note." not in ending(str(folder / "out"))
    assert "(`self_check` was off)" in ending(str(folder / "out"))
