"""What a user of Trainer guesses: names, keywords and returns of a pruner are Trainer's, or one line says why not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_batch, refused, tiny_encoder, tiny_model
from datasets import Dataset
from huggingface_hub import CommitInfo
from networks import Residual
from peft import IA3Config, LoraConfig
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments, recover

TRAINING = {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "logging_steps": 1, "use_cpu": True}


def arguments(**fields) -> SpectralPruningArguments:
    defaults = {"disable_tqdm": True, "target_reduction": 0.3, "target_scope": "prunable", "round_to": 4, "min_ffn_units": 4}
    return SpectralPruningArguments(**defaults | {"units": "ffn", "compensation": "none"} | fields)


def make_pruner(model=None, args=None, **options) -> SpectralPruner:
    data = {"calibration_dataset": [random_batch(4, 32)]}
    return SpectralPruner(tiny_model() if model is None else model, args or arguments(), **data | options)


def text_rows(count: int = 8) -> list[dict]:
    return [{"input_ids": ids} for ids in random_batch(count, 12)["input_ids"]]


def labelled_rows(count: int = 8) -> list[dict]:
    return [row | {"labels": index % 2} for index, row in enumerate(text_rows(count))]


# ---- what is given


@pytest.mark.parametrize("kind", [str, Path])
def test_a_model_may_be_named(kind, tokenizer, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    pruner = SpectralPruner(kind(tmp_path), arguments(max_seq_length=8), ["w3 w4 w5 w6 w7 w8 w9 w10"] * 20)
    assert type(pruner.processing_class).__name__ == type(tokenizer).__name__
    assert pruner.base_model == str(tmp_path)
    assert pruner.train().plan.reduction > 0


def test_a_model_may_be_made():
    assert SpectralPruner(model_init=tiny_model, args=arguments(criterion="magnitude")).model.config.model_type == "llama"
    for given in ({}, {"model": tiny_model(), "model_init": tiny_model}):
        refused(lambda given=given: SpectralPruner(args=arguments(criterion="magnitude"), **given), "one of the two")


def test_training_arguments_are_told(tmp_path):
    refused(lambda: make_pruner(args=TrainingArguments(str(tmp_path))), "`TrainingArguments`", "`training_args`")


def test_by_default_all_kinds_of_unit_of_the_family_go():
    args = SpectralPruningArguments(disable_tqdm=True)
    assert SpectralPruner(Residual(), args, torch.randn(8, 3, 8, 8)).args.units == ["channels"]
    assert make_pruner(args=arguments(units=None)).args.units == ["ffn", "heads"]


# ---- what is called


class Counter(TrainerCallback):
    def __init__(self):
        self.events: list[tuple[str, list[str]]] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.events.append(("begin", []))

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.events.append(("evaluate", list(metrics)))

    def on_log(self, args, state, control, logs, **kwargs):
        self.events.append(("log", list(logs)))


def test_the_stock_early_stopping_stops_the_rounds(tmp_path):
    fields = {"num_rounds": 5, "eval_strategy": "steps", "save_strategy": "steps", "output_dir": str(tmp_path / "out")}
    args = arguments(**fields, metric_for_best_model="perplexity")
    assert args.greater_is_better is False
    pruner = make_pruner(args=args, eval_dataset=[random_batch(4, 32)], callbacks=[EarlyStoppingCallback(1)])
    figures = iter([3.0, 2.0, 2.5, 1.0, 1.0])
    evaluate = pruner.evaluate

    def scripted(metric_key_prefix="eval", **kwargs):
        if metric_key_prefix != "eval":
            return evaluate(metric_key_prefix=metric_key_prefix)
        metrics = {"eval_perplexity": next(figures)}
        pruner._event("on_evaluate", metrics=metrics)
        return metrics

    pruner.evaluate = scripted
    pruner.train()
    assert pruner.state.global_step == 3  # the first that was no better
    assert (pruner.state.best_metric, pruner.state.best_global_step) == (2.0, 2)
    assert pruner.state.best_model_checkpoint.endswith("checkpoint-2")


def test_a_metric_that_the_evaluation_does_not_give_is_told():
    args = arguments(eval_strategy="steps", metric_for_best_model="f1")
    pruner = make_pruner(args=args, eval_dataset=[random_batch(4, 32)])
    refused(pruner.train, "`metric_for_best_model` is `f1`", "`eval_perplexity`")


def test_the_recovery_is_heard_by_the_same_callbacks_in_one_log(tmp_path):
    counter = Counter()
    args = arguments(recovery="full", training_args=TRAINING | {"output_dir": str(tmp_path)})
    rows = text_rows()
    pruner = make_pruner(args=args, eval_dataset=[random_batch(4, 32)], train_dataset=rows, callbacks=[counter])
    pruner.train()
    assert [name for name, _ in counter.events].count("begin") == 1
    assert not any(name == "evaluate" for name, _ in counter.events)  # before and after are no evaluations of a run
    assert sum("loss" in logs for name, logs in counter.events if name == "log") == 2
    history = pruner.state.log_history
    assert sum("loss" in entry for entry in history) == 2
    assert any("before_perplexity" in entry for entry in history) and any("after_perplexity" in entry for entry in history)


def test_early_stopping_does_not_break_the_recovery(tmp_path):
    args = arguments(
        recovery="full",
        training_args=TRAINING | {"output_dir": str(tmp_path), "eval_strategy": "steps", "eval_steps": 1},
        eval_strategy="steps",
        metric_for_best_model="loss",
    )
    data = {"eval_dataset": [random_batch(4, 32)], "train_dataset": text_rows()}
    make_pruner(args=args, **data, callbacks=[EarlyStoppingCallback(3)]).train()


def test_predictions_and_metrics_are_trainers():
    def metrics(found):
        assert found.predictions.ndim == 1  # made smaller first
        return {"accuracy": float((found.predictions == found.label_ids).mean())}

    pruner = make_pruner(
        tiny_encoder(),
        compute_metrics=metrics,
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
        calibration_dataset=labelled_rows(),
    )
    found = pruner.predict(labelled_rows())
    assert found.predictions.shape == found.label_ids.shape == (8,)
    assert found.metrics["test_accuracy"] == pruner.evaluate(labelled_rows())["eval_accuracy"]
    assert isinstance(found.predictions, np.ndarray)


def test_a_loss_of_the_users_own_trains_the_recovery(tmp_path):
    seen = []

    def loss(outputs, labels, num_items_in_batch=None):
        seen.append(labels.shape)
        return outputs.logits.square().mean()

    args = arguments(recovery="full", training_args=TRAINING | {"output_dir": str(tmp_path)})
    make_pruner(args=args, train_dataset=text_rows(), compute_loss_func=loss).train()
    assert len(seen) == 2


def test_metrics_and_state_are_saved_as_trainer_saves_them(tmp_path):
    pruner = make_pruner(args=arguments(output_dir=str(tmp_path / "out"), self_check=False))
    refused(pruner.save_state, "`save_model()` first")
    output = pruner.train()
    pruner.save_model()
    pruner.log_metrics("train", output.metrics)
    pruner.save_metrics("train", output.metrics)
    pruner.save_state()
    assert json.loads((tmp_path / "out" / "train_results.json").read_text())["reduction"] == output.metrics["reduction"]
    assert json.loads((tmp_path / "out" / "trainer_state.json").read_text())["global_step"] == 1


def test_the_card_takes_trainers_keywords(tmp_path):
    pruner = make_pruner(args=arguments(output_dir=str(tmp_path / "out"), self_check=False))
    pruner.train()
    pruner.save_model()
    pruner.create_model_card(language="en", license="mit", tags="mine", model_name="My Cria", finetuned_from="org/base")
    text = (tmp_path / "out" / "README.md").read_text()
    assert all(words in text for words in ("license: mit", "- mine", "- cria", "base_model: org/base"))
    refused(lambda: pruner.push_to_hub(blocking=False), "`blocking=False`")
    refused(lambda: pruner.push_to_hub(revision="dev"), "`revision` is `dev`")


def test_a_push_gives_the_commit_as_trainer_does(tmp_path, monkeypatch):
    commit = CommitInfo("https://huggingface.co/me/cria/commit/1", "mine", "", "1")
    pushed = []
    monkeypatch.setattr("hf_spectral_prune.publishing.hub.push_folder", lambda *given: pushed.append(given) or commit)
    pruner = make_pruner(args=arguments(output_dir=str(tmp_path / "out"), hub_model_id="me/cria", self_check=False))
    pruner.train()
    assert pruner.push_to_hub("mine", private=True, tags=["tagged"]) is commit  # saved first, and its card takes the tags
    assert pushed == [(tmp_path / "out", "me/cria", None, True, "mine", False)]
    assert "- tagged" in (tmp_path / "out" / "README.md").read_text()


def test_what_is_printed_fits_on_a_screen():
    pruner = make_pruner(tiny_model(num_hidden_layers=30), eval_dataset=[random_batch(4, 32)])
    for shown in (pruner.plan(), pruner.prune()):
        assert str(shown) == shown.summary()
        assert len(str(shown).splitlines()) < 20 and len(str(shown)) < 1500
        assert len(repr(shown)) < 200
        assert "ffn: 720 ->" in str(shown)


# ---- recover alone


def test_recovery_needs_a_data_set_alone(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    model = type(tiny_model()).from_pretrained(tmp_path / "model")
    texts = Dataset.from_dict({"text": ["w3 w4 w5 w6 w7 w8 w9 w10"] * 200})
    assert recover(model, train_dataset=texts).metrics["train_loss"] > 0
    refused(lambda: recover(model), "nothing to train on")


def test_adapters_may_be_peft_s_own(tmp_path):
    seen = []

    class Adapters(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            names = [name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name]
            seen.append({name.rpartition(".")[2] for name in names})

    args = arguments(training_args=TRAINING | {"output_dir": str(tmp_path)})
    config = LoraConfig(r=2, target_modules=["up_proj"])
    pruner = make_pruner(args=args, train_dataset=text_rows(), peft_config=config, callbacks=[Adapters()])
    model = pruner.train().model
    assert seen == [set(), {"up_proj"}, {"up_proj"}]  # a round, and two steps
    assert not any("lora" in name for name, _ in model.named_parameters())
    refused(lambda: recover(model, train_dataset=text_rows(), peft_config=IA3Config()), "`IA3Config`", "`LoraConfig`")
