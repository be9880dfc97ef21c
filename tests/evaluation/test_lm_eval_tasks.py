"""Tasks of lm_eval on the dense and the pruned model: figures of the model itself, in every place that shows figures."""

from __future__ import annotations

import copy
import importlib.util
import json
import random

import numpy as np
import pytest
import torch
from conftest import random_batch, tiny_encoder, tiny_model
from crias import TASK
from huggingface_hub import ModelCard
from transformers import TrainingArguments

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments, SpectralPruningCallback
from hf_spectral_prune.arguments import LmEvalArguments
from hf_spectral_prune.cli.main import main
from hf_spectral_prune.evaluation.tasks import TaskFigures, task_figures
from hf_spectral_prune.publishing.report.write import write_report

NUM_ITEMS = 40
installed = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is optional")


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder with the task `cria_pairs`: which of two words comes next."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    folder = tmp_path / "tasks"
    folder.mkdir()
    words = torch.randint(40, 95, (NUM_ITEMS, 6), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [
        {"question": " ".join(f"w{word}" for word in row[:4]), "choices": [f"w{row[4]}", f"w{row[5]}x"], "label": row[0] % 2}
        for row in words
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "cria_pairs.yaml").write_text(TASK.format(rows=folder / "rows.jsonl"))
    return folder


@pytest.fixture
def dense(tmp_path, tokenizer):
    """A saved model with its tokenizer."""
    folder = tmp_path / "dense"
    tiny_model(intermediate_size=64).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (tmp_path / "text.txt").write_text(" ".join(f"w{index % 90 + 3}" for index in range(4000)))
    return folder


def options(tasks, **fields):
    return LmEvalArguments(**{"lm_eval": ["cria_pairs"], "lm_eval_include_path": str(tasks)} | fields)


@installed
def test_measuring_changes_neither_tokenizer_nor_chance(tasks, tokenizer):
    model, tokenizer = tiny_model().train(), copy.deepcopy(tokenizer)
    tokenizer.pad_token, before = None, random.getstate()
    drawn = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    found = task_figures(model, tokenizer, options(tasks, lm_eval_limit=5), progress=False)
    assert found["cria_pairs"].items == 5
    assert tokenizer.pad_token is None
    assert model.training
    assert random.getstate() == before
    assert torch.equal(torch.random.get_rng_state(), drawn[0])
    assert np.array_equal(np.random.get_state()[1], drawn[1])


@installed
def test_a_run_tells_both_models_figures_everywhere(tasks, dense, tmp_path, capsys):
    words = ["prune", str(dense), "--output_dir", str(tmp_path / "cria"), "--calibration_file", str(tmp_path / "text.txt")]
    words += ["--max_seq_length", "32", "--num_calibration_samples", "8", "--no_self_check", "--target_reduction", "0.3"]
    words += ["--lm_eval", "cria_pairs", "--lm_eval_limit", "20", "--lm_eval_include_path", str(tasks), "--json"]
    assert main(words) == 0
    screen = capsys.readouterr()
    found = json.loads(screen.out)["lm_eval"]
    assert "lm_eval" not in screen.err  # a pipe stays quiet
    assert found["limit"] == 20
    task = found["tasks"]["cria_pairs"]
    for side, folder in (("before", dense), ("after", tmp_path / "cria")):
        arguments = [str(folder), *words[-7:-1]]
        assert main(["evaluate", *arguments]) == 0
        alone = json.loads(capsys.readouterr().out)["lm_eval"]["tasks"]["cria_pairs"]
        assert (task[side], task[f"{side}_stderr"]) == (alone["figures"], alone["stderr"])
        assert (alone["items"], alone["num_fewshot"]) == (20, 0)
    results = {
        result.metric_name: result
        for result in ModelCard.load(tmp_path / "cria" / "README.md").data.eval_results or []
        if result.dataset_name == "cria_pairs"
    }
    assert results["acc, after pruning"].metric_value == task["after"]["acc"]
    assert results["acc, base model before pruning"].metric_value == task["before"]["acc"]
    shown = f"{task['after']['acc']:.1%}".replace("%", "\N{NO-BREAK SPACE}%")
    row = f"cria_pairs, acc | {task['before']['acc']:.1%}".replace("%", " %")
    card = (tmp_path / "cria" / "README.md").read_text(encoding="utf-8")
    page = write_report(tmp_path / "cria").read_text(encoding="utf-8")
    assert row in card
    assert "on the first 20 items of each, without a chat template" in card
    assert "cria_pairs, acc" in page and shown in page


@installed
def test_a_name_that_lm_eval_does_not_know_is_told_before_any_work(dense, tasks, tmp_path, capsys, monkeypatch):
    from lm_eval import tasks as lm_eval_tasks

    real = lm_eval_tasks.TaskManager
    # Its own index takes half a minute.
    monkeypatch.setattr(lm_eval_tasks, "TaskManager", lambda **given: real(**given | {"include_defaults": False}))
    words = ["--lm_eval", "cria_pear", "--lm_eval_include_path", str(tasks), "--output_dir", str(tmp_path / "cria")]
    assert main(["prune", str(tmp_path / "no-model-here"), *words]) == 2
    assert "`cria_pear`, which is no task of lm_eval. Did you mean `cria_pairs`?" in capsys.readouterr().err


def test_a_missing_package_is_told_with_how_to_install_it(dense, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for command in (["prune", "--output_dir", str(tmp_path / "cria")], ["evaluate"]):
        assert main([*command, str(dense), "--lm_eval", "piqa"]) == 2
        assert "pip install lm_eval" in capsys.readouterr().err


def test_only_decoders_with_a_tokenizer_can_be_asked(tasks, tokenizer):
    with pytest.raises(ValueError, match="is for causal language models, and the model is a `BertForSequenceClassification`"):
        task_figures(tiny_encoder("bert", task="ForSequenceClassification"), tokenizer, options(tasks))
    with pytest.raises(ValueError, match="there is no tokenizer"):
        SpectralPruner(
            tiny_model(), SpectralPruningArguments(lm_eval=["cria_pairs"], lm_eval_include_path=str(tasks)), [random_batch()]
        )


def test_a_trainer_is_not_asked(tmp_path):
    callback = SpectralPruningCallback(lm_eval=["piqa"], units=["ffn"])
    with pytest.raises(ValueError, match="not in the training of a Trainer"):
        callback.check(TrainingArguments(str(tmp_path), use_cpu=True), tiny_model(), None)


@installed
def test_a_task_whose_data_cannot_be_had_ends_in_one_line(tasks, tokenizer):
    (tasks / "rows.jsonl").unlink()
    with pytest.raises(ValueError, match=r"lm_eval cannot run `cria_pairs`: [^\n]*leave the task out"):
        task_figures(tiny_model(), tokenizer, options(tasks), progress=False)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"lm_eval": []}, "name each task once"),
        ({"lm_eval": "piqa,piqa"}, "name each task once"),
        ({"lm_eval": ["piqa"], "lm_eval_limit": 0}, "must be at least 1"),
        ({"lm_eval_limit": 10}, "names no task"),
        ({"lm_eval_include_path": "tasks"}, "names no task"),
    ],
)
def test_values_that_cannot_work_are_told(given, told):
    with pytest.raises(ValueError, match=told):
        SpectralPruningArguments(**given)


def test_tasks_may_be_joined_by_commas():
    assert SpectralPruningArguments(lm_eval="hellaswag, piqa").lm_eval == ["hellaswag", "piqa"]
    assert SpectralPruningArguments("out").output_dir == "out"  # positions are as they were


@installed
def test_figures_of_one_model_are_its_own(tasks, tokenizer):
    first = task_figures(tiny_model(), tokenizer, options(tasks), progress=False)["cria_pairs"]
    assert isinstance(first, TaskFigures)
    again = task_figures(tiny_model(), tokenizer, options(tasks), batch_size=3, progress=False)["cria_pairs"]
    assert first == again
    assert first.items == NUM_ITEMS
