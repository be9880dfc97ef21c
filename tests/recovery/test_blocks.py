"""Recovery block by block: every layer nearer to the dense stream, nothing else touched, never worse, no labels needed."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import random_batch, refused, tiny_encoder, tiny_model
from transformers import TrainingArguments

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.data.rows import default_collator
from hf_spectral_prune.models.families import unit_groups
from hf_spectral_prune.recovery.blocks import stream_error, train_blocks
from hf_spectral_prune.recovery.recover import RecoveryArguments, recover
from hf_spectral_prune.surgery.sequential import cut_sequentially


def training_args(folder, **fields) -> TrainingArguments:
    defaults = {"output_dir": str(folder), "max_steps": 20, "learning_rate": 3e-3, "per_device_train_batch_size": 8}
    quiet = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True}
    return TrainingArguments(**defaults | quiet | fields)


def rows(number: int, seed: int = 0) -> list[dict]:
    batch = random_batch(number, 16, seed)
    return [{"input_ids": ids.tolist(), "attention_mask": [1] * 16} for ids in batch["input_ids"]]


def cut_and_dense(family: str):
    dense = tiny_encoder(family, task="ForMaskedLM") if family == "bert" else tiny_model(family)
    model = copy.deepcopy(dense)
    kept = {group.key: torch.arange(0, group.size, 2) for group in unit_groups(model)}
    cut_sequentially(model, kept, [random_batch(16, 16)], progress=False)
    return model, dense


@pytest.mark.parametrize("family", ["llama", "gemma3", "bert"])
def test_every_layer_meets_the_dense_stream_better(family, tmp_path):
    model, dense = cut_and_dense(family)
    teacher = copy.deepcopy(dense.state_dict())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    args, options = training_args(tmp_path), {"train_dataset": rows(64), "eval_dataset": rows(8, seed=1)}
    options["data_collator"] = default_collator(model, None)
    away = stream_error(model, dense, args, options)
    history = train_blocks(model, dense, args, options)
    assert len(history) == model.config.num_hidden_layers
    assert all(entry["block_error_after"] <= entry["block_error_before"] for entry in history)
    assert history[0]["block_error_after"] < 0.97 * history[0]["block_error_before"]
    assert stream_error(model, dense, args, options) == pytest.approx(history[-1]["block_error_after"], rel=1e-4)
    assert history[-1]["block_error_after"] < away
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all("layer" in name for name in changed)  # neither embeddings nor head
    assert all(torch.equal(value, teacher[name]) for name, value in dense.state_dict().items())


def test_layers_that_training_makes_worse_are_put_back(tmp_path):
    model, dense = cut_and_dense("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    args = training_args(tmp_path, learning_rate=10.0, max_grad_norm=0.0, max_steps=4)
    options = {"train_dataset": rows(16), "eval_dataset": rows(8, seed=1), "data_collator": default_collator(model, None)}
    history = train_blocks(model, dense, args, options)
    assert all(entry["block_error_after"] == entry["block_error_before"] for entry in history)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_padding_is_neither_learnt_from_nor_judged_by(tmp_path):
    errors = []
    for padding in (5, 9):
        model, dense = cut_and_dense("llama")
        data = rows(16)
        for row in data[::2]:
            row["input_ids"][10:], row["attention_mask"][10:] = [padding] * 6, [0] * 6
        options = {"train_dataset": data, "eval_dataset": data, "data_collator": default_collator(model, None)}
        errors.append([entry["block_error_after"] for entry in train_blocks(model, dense, training_args(tmp_path), options)])
    assert errors[0] == pytest.approx(errors[1], rel=1e-5)


def test_without_labels_it_is_judged_by_the_dense_stream(tmp_path):
    model, dense = cut_and_dense("bert")
    output = recover(model, RecoveryArguments("blocks"), training_args(tmp_path), rows(64), rows(8, seed=1), teacher=dense)
    assert output.kept == "recovered"
    assert output.metrics["after_stream_loss"] < output.metrics["before_stream_loss"]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_pruner_ends_with_it(batches, tmp_path):
    dense = tiny_model()
    args = SpectralPruningArguments(
        criterion="energy",
        recovery="blocks",
        training_args={"max_steps": 2, "output_dir": str(tmp_path / "training"), "use_cpu": True},
        disable_tqdm=True,
    )
    made = SpectralPruner(copy.deepcopy(dense), args, batches, batches, train_dataset=rows(16), teacher=dense)
    output = made.prune()
    assert output.report.recovery is not None and len(output.report.recovery["log_history"]) == dense.config.num_hidden_layers
    refused(lambda: SpectralPruner(copy.deepcopy(dense), args, batches, batches, train_dataset=rows(16)), "`teacher`")
