"""SpectralPruner and `cria prune` on two processes: what one process gives, to the last bit."""

from __future__ import annotations

import json

import pruning_together
import pytest
from conftest import tiny_model
from processes import run_in_two_processes

from hf_spectral_prune.cli.main import main as cria


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("together")
    tiny_model().save_pretrained(folder / "dense")
    tokenizer.save_pretrained(folder / "dense")
    words = (f"w{3 + index * index % 90}" for index in range(400))
    (folder / "text.txt").write_text(" ".join(words))
    return folder


@pytest.fixture(scope="module")
def together(forks, folder):
    return run_in_two_processes(forks, "pruning_together.py", folder)


@pytest.mark.parametrize("way", pruning_together.WAYS)
def test_two_processes_end_with_what_one_ends_with(way, together, tmp_path):
    first, second = (result[way] for result in together)
    assert first == second
    assert first == json.loads(json.dumps(pruning_together.pruned(way, tmp_path)))


def test_command_line_shares_the_work_and_one_process_saves(together, folder, tmp_path, capsys):
    assert [result["command"] for result in together] == [0, 0]
    logs = [(folder / f"rank{rank}.log").read_text() for rank in range(2)]
    assert "Saved in" in logs[0] and "Saved in" not in logs[1]
    words = [word.replace(str(folder / "cria"), str(tmp_path / "alone")) for word in pruning_together.command(folder)]
    assert cria(words) == 0
    for name in ("model.safetensors", "pruning_plan.json", "pruning_scores.json"):
        assert (folder / "cria" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name


def test_refusal_of_the_first_process_ends_all(together, folder):
    assert [result["refused"] for result in together] == [2, 1]
    logs = [(folder / f"rank{rank}.log").read_text() for rank in range(2)]
    assert "cria prune: `output_dir`" in logs[0]
    assert "cria prune (process 1): The first process stopped: `output_dir`" in logs[1]


def test_process_that_cannot_find_the_others_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert cria(["prune", "--model_name_or_path", str(tmp_path), "--output_dir", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err
    assert "`WORLD_SIZE` is 2, but" in line and "accelerate launch" in line
