"""The stopping rule keeps the last good plan, and the recovery inside a pruning run."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from conftest import logits, random_batch, tiny_encoder, tiny_model

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.evaluation.figures import perplexity, task_metrics
from hf_spectral_prune.surgery import apply_plan, masked, settle_class


def make_pruner(model, batches, eval_batches=None, *, compute_metrics=None, train_dataset=None, teacher=None, **fields):
    defaults = {"disable_tqdm": True, "target_reduction": 0.6, "target_scope": "prunable", "round_to": 4, "min_ffn_units": 4}
    defaults |= {"criterion": "energy", "num_rounds": 4, "compensation": "none"}  # as the rule measures it
    args = SpectralPruningArguments(**defaults | fields)
    more = {"compute_metrics": compute_metrics, "train_dataset": train_dataset, "teacher": teacher}
    return SpectralPruner(model, args, batches, eval_batches, **more)


def labelled(model, rows=64):
    """Batches whose labels are the model's own answers, so that the dense model is always right."""
    batch = random_batch(rows, 16, seed=7)
    return [batch | {"labels": logits(model, batch).argmax(-1)}]


def accuracy(prediction):
    return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
def test_rounds_stop_before_the_metric_falls_too_far(layout, batches):
    model = tiny_encoder("bert")
    dense, data = copy.deepcopy(model), labelled(model)
    fields = {"layout": layout, "allocation": "proportional" if layout == "uniform" else "scores", "units": ["ffn"]}
    pruner = make_pruner(model, batches, data, compute_metrics=accuracy, stop_metric="eval_accuracy", stop_drop=0.02, **fields)
    output = pruner.prune()
    measured = [entry["eval_accuracy"] for entry in pruner.state.log_history if "eval_accuracy" in entry]
    assert all(value >= 0.98 for value in measured[:-1])
    assert measured[-1] < 0.98
    assert any("Stopped before round" in note for note in output.plan.notes)
    # What is left is the last good round, and its masked figure was the figure of the cut model.
    after = output.report["metrics_after"]["after_accuracy"]
    assert after == (measured[-2] if len(measured) > 1 else 1.0)
    again = settle_class(apply_plan(dense, output.plan))
    assert torch.equal(logits(again, random_batch()), logits(output.model, random_batch()))


def test_a_first_round_that_is_too_much_leaves_the_model_as_it_was(batches):
    model = tiny_model()
    before = copy.deepcopy(model)
    output = make_pruner(model, batches, batches, allocation="proportional", stop_metric="perplexity", stop_drop=0.0).prune()
    assert output.metrics["reduction"] == 0
    assert "Stopped before round 1 of 4" in output.plan.notes[-1]
    assert torch.equal(logits(model, random_batch()), logits(before, random_batch()))


def test_without_a_fall_the_target_is_met(batches):
    free = make_pruner(tiny_model(), batches).prune()
    held = make_pruner(tiny_model(), batches, batches, stop_metric="eval_loss", stop_drop=100.0).prune()
    assert held.plan.kept == free.plan.kept


def test_stop_metric_that_cannot_be_measured_is_told_before_any_cut(batches):
    with pytest.raises(ValueError, match="Pass `eval_dataset`"):
        make_pruner(tiny_model(), batches, stop_metric="eval_loss")
    with pytest.raises(ValueError, match="gives `eval_loss`, `eval_perplexity`"):
        make_pruner(tiny_model(), batches, batches, stop_metric="eval_accuracy").prune()


def test_task_metrics_are_those_of_the_whole_set():
    """Whatever the batches are, loss and accuracy are means over all examples."""
    model = tiny_encoder("bert")
    batch = random_batch(10, 12, padding="right") | {"labels": torch.tensor([0, 1] * 5)}
    parts = [{name: value[rows] for name, value in batch.items()} for rows in (slice(0, 3), slice(3, 10))]
    whole, split = (task_metrics(model, data, accuracy, progress=False) for data in ([batch], parts))
    assert whole == pytest.approx(split)
    with torch.inference_mode():
        output = model(**batch)
    assert whole["loss"] == pytest.approx(float(output.loss))
    assert whole["accuracy"] == pytest.approx(float((output.logits.argmax(-1) == batch["labels"]).float().mean()))


def test_task_metrics_of_a_causal_model_have_the_loss_of_its_perplexity(batches):
    model = tiny_model()
    seen = []
    figures = task_metrics(model, batches, lambda prediction: seen.append(prediction.predictions.shape) or {}, progress=False)
    assert seen == [(16, 32, 96)]
    assert figures["loss"] == pytest.approx(perplexity(model, batches, progress=False)["loss"])


def test_masked_figures_are_those_of_the_cut_model(batches):
    model = tiny_model()
    plan = make_pruner(model, batches).plan()
    with masked(model, {key: plan.kept_index(key) for key in plan.kept}):
        expected = perplexity(model, batches, progress=False)["loss"]
    apply_plan(model, plan)
    assert perplexity(model, batches, progress=False)["loss"] == pytest.approx(expected)


STEPS = {"max_steps": 4, "learning_rate": 1e-2, "use_cpu": True, "per_device_train_batch_size": 4}


@pytest.mark.parametrize("method", ["full", "lora", "distill"])
def test_prune_ends_with_the_recovery_that_is_asked_for(method, batches, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tiny_model()
    teacher = copy.deepcopy(model) if method == "distill" else None
    rows = [{"input_ids": ids} for batch in batches for ids in batch["input_ids"]]
    fields = {"recovery": method, "training_args": STEPS, "recovery_args": {"distill_alpha": 0.1}}
    pruner = make_pruner(model, batches, batches, train_dataset=rows, teacher=teacher, **fields)
    report = pruner.prune().report
    assert report["recovery"]["kept"] == "recovered"
    assert report["metrics_after"]["after_loss"] == pytest.approx(report["recovery"]["metrics"]["after_loss"], rel=1e-4)
    assert report["recovery"]["metrics"]["after_loss"] < report["recovery"]["metrics"]["before_loss"]
    assert type(pruner.model).__name__ == "LlamaForCausalLM"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"recovery": "full"}, "Pass `train_dataset`"),
        ({"recovery": "retrain"}, "`distill`"),
        ({"recovery": "distill", "train_dataset": []}, "Pass `teacher`"),
        ({"recovery": "lora", "train_dataset": [], "recovery_args": {"lora_target_modules": ["c_attn"]}}, "`c_attn`"),
        ({"recovery": "lora", "recovery_args": {"lora_rank": 8}}, "`lora_r`"),
        ({"recovery": "lora", "recovery_args": '{"lora_r": 0}'}, "at least 1"),
        ({"training_args": {"learning_rat": 1e-4}}, "`learning_rate`"),
        ({"training_args": "{"}, "not JSON"),
    ],
    ids=str,
)
def test_recovery_that_cannot_work_is_told_before_pruning(fields, message, batches):
    with pytest.raises(ValueError, match=message):
        make_pruner(tiny_model(), batches, **fields)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="is about machines without an accelerator")
def test_training_arguments_that_this_machine_cannot_run_are_told_before_pruning(batches):
    rows = [{"input_ids": ids} for batch in batches for ids in batch["input_ids"]]
    fields = {"recovery": "full", "train_dataset": rows}
    with pytest.raises(ValueError, match=r"`training_args` cannot be used here: .*bf16") as raised:
        make_pruner(tiny_model(), batches, training_args=STEPS | {"bf16": True, "use_cpu": False}, **fields)
    assert "\n" not in str(raised.value)
    steps = {name: value for name, value in STEPS.items() if name != "use_cpu"} | {"bf16": True}
    make_pruner(tiny_model(), batches, training_args=steps, **fields)  # bf16 alone is for the CPU where there is nothing else


def test_raw_text_to_train_on_is_told_before_any_work(batches):
    with pytest.raises(ValueError, match="holds texts, and there is no tokenizer"):
        make_pruner(tiny_model(), batches, recovery="full", train_dataset=["some text"] * 9, training_args=STEPS)
