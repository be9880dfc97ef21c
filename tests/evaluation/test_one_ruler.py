"""One ruler: what counts as a target, and the loss over it, are the same for every door and however rows are batched."""

from __future__ import annotations

import copy
import math

import datasets
import pytest
import torch
from conftest import logits, random_batch, refused, tiny_encoder, tiny_model
from recovering import patterned_rows
from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments, compare
from hf_spectral_prune.calibration import collect_moments
from hf_spectral_prune.data.rows import causal_collator
from hf_spectral_prune.data.texts import CalibrationData, build_calibration
from hf_spectral_prune.evaluation.figures import held_out_figures
from hf_spectral_prune.models.families import unit_groups
from hf_spectral_prune.models.losses import loss_of, num_targets, single_sequences
from hf_spectral_prune.models.packing import documents_apart
from hf_spectral_prune.planning.damage import SuffixLoss
from hf_spectral_prune.recovery.recover import RecoveryArguments, recover
from hf_spectral_prune.studies.comparison.arguments import ComparisonArguments

QUIET = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}


def prompted_rows(count: int = 6) -> list[dict]:
    """Rows of unequal length whose first half is a prompt, which is not to be answered."""
    rows = []
    for index in range(count):
        ids = random_batch(1, 12 + 3 * index, seed=index)["input_ids"][0].tolist()
        half = len(ids) // 2
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100] * half + ids[half:]})
    return rows


def answers_alone(model, rows) -> tuple[float, int]:
    """Sum and number of the labelled tokens' losses, each row by itself, as an independent computation gives them."""
    total, count = 0.0, 0
    for row in rows:
        scores = logits(model, {"input_ids": torch.tensor([row["input_ids"]])})[0].log_softmax(-1)
        for place, label in enumerate(row["labels"]):
            if place and label != -100:
                total, count = total - float(scores[place - 1, label]), count + 1
    return total, count


def test_labels_of_minus_100_count_nowhere(tmp_path):
    """`evaluate()`, `compare`, the recovery, the damage and the loss itself: all measure the answers alone."""
    model, rows = tiny_model(), prompted_rows()
    total, count = answers_alone(model, rows)
    data = datasets.Dataset.from_list(rows)
    args = SpectralPruningArguments(disable_tqdm=True, criterion="energy", stop_metric="eval_loss", num_rounds=1)
    pruner = SpectralPruner(model, args, data, data)
    figures = pruner.evaluate()
    assert figures["eval_loss"] == pytest.approx(total / count, rel=1e-5) and figures["eval_num_tokens"] == count
    batches = pruner.eval_data.batches
    assert SuffixLoss(model, batches).clean == pytest.approx(total / count, rel=1e-5)
    assert sum(num_targets(model, batch) for batch in batches) == count
    assert sum(loss_of(model, batch).item() for batch in batches) == pytest.approx(total, rel=1e-5)
    trained = TrainingArguments(output_dir=str(tmp_path / "out"), max_steps=1, per_device_eval_batch_size=4, **QUIET)
    recovered = recover(copy.deepcopy(model), RecoveryArguments(), trained, data, data)
    assert recovered.metrics["before_loss"] == figures["eval_loss"]
    compared = compare(
        model,
        ComparisonArguments(output_dir=str(tmp_path / "compared"), criteria=["energy"], reductions=[0.3], disable_tqdm=True),
        data,
        data,
    )
    assert compared.dense["metrics"]["loss"] == figures["eval_loss"]
    trainer = Trainer(
        model=model, args=TrainingArguments(output_dir=str(tmp_path / "trainer"), per_device_eval_batch_size=1, **QUIET)
    )
    weights = [sum(label != -100 for label in row["labels"][1:]) for row in rows]
    losses = [trainer.evaluate(datasets.Dataset.from_list([row]))["eval_loss"] for row in rows]
    assert figures["eval_loss"] == pytest.approx(
        sum(w * x for w, x in zip(weights, losses, strict=True)) / sum(weights), rel=1e-5
    )


def test_a_class_of_the_row_is_no_target_of_a_language_model():
    """Tokenised rows of a classification set bring their `label` along."""
    model, row = tiny_model(), random_batch(1, 12)["input_ids"][0].tolist()
    with_class = build_calibration([{"input_ids": row, "label": 1}], num_samples=1, max_seq_length=12)
    without = build_calibration([{"input_ids": row}], num_samples=1, max_seq_length=12)
    assert "labels" in with_class.batches[0]
    assert held_out_figures(model, with_class, progress=False) == held_out_figures(model, without, progress=False)
    torch.testing.assert_close(loss_of(model, with_class.batches[0]), loss_of(model, without.batches[0]))


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_no_batch_size_moves_the_recoverys_judge(batch_size, tmp_path):
    model, rows = tiny_model(), prompted_rows()
    args = TrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=2,
        per_device_eval_batch_size=batch_size,
        eval_strategy="steps",
        eval_steps=1,
        **QUIET,
    )
    output = recover(model, RecoveryArguments(), args, datasets.Dataset.from_list(rows), datasets.Dataset.from_list(rows))
    total, count = answers_alone(tiny_model(), rows)
    assert output.metrics["before_loss"] == pytest.approx(total / count, rel=1e-5)
    after = held_out_figures(model, build_calibration(rows, num_samples=6), progress=False)
    assert output.metrics["after_loss"] == after["loss"]
    logged = [entry["eval_loss"] for entry in output.log_history if "eval_loss" in entry]
    assert len(logged) == 2 and logged[-1] == after["loss"]


@pytest.mark.parametrize("precision", ["bf16", "lora"])
def test_mixed_precision_and_adapters_are_measured_by_the_same_ruler(precision, tmp_path):
    fields = {"bf16": True} if precision == "bf16" else {}
    args = TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=2, eval_strategy="steps", eval_steps=2, **fields, **QUIET
    )
    model, rows = tiny_model(), patterned_rows(8)
    method = "full" if precision == "bf16" else "lora"
    output = recover(model, RecoveryArguments(method=method), args, patterned_rows(), rows)
    own = held_out_figures(model, build_calibration(rows, num_samples=8), progress=False)["loss"]
    logged = [entry["eval_loss"] for entry in output.log_history if "eval_loss" in entry]
    assert output.metrics["after_loss"] == own and logged == [pytest.approx(own, rel=1e-5)]


def test_stop_rule_measures_answers_alone():
    """Pruned by its answers, a model is stopped by them: the prompts' tokens would have let the round pass or not by chance."""
    model, rows = tiny_model(), prompted_rows()
    args = SpectralPruningArguments(
        disable_tqdm=True,
        criterion="energy",
        compensation="none",
        target_reduction=0.3,
        stop_metric="eval_loss",
        stop_drop=10,
    )
    pruner = SpectralPruner(model, args, rows, rows)
    total, count = answers_alone(model, rows)
    pruner.prune()
    history = [entry["eval_loss"] for entry in pruner.state.log_history if "eval_loss" in entry]
    before = next(entry["before_loss"] for entry in pruner.state.log_history if "before_loss" in entry)
    assert before == pytest.approx(total / count, rel=1e-5)
    # Measured by masking, which is the same as cutting.
    after = next(entry["after_loss"] for entry in pruner.state.log_history if "after_loss" in entry)
    assert history == [pytest.approx(after, rel=1e-4)]


def test_a_classifier_gives_the_same_figures_everywhere(tokenizer, tmp_path):
    model = tiny_encoder("bert")
    rows = [
        {"input_ids": random_batch(1, 8 + index % 5, seed=index)["input_ids"][0].tolist(), "label": index % 2}
        for index in range(24)
    ]
    data = datasets.Dataset.from_list(rows)
    figures = SpectralPruner(model, SpectralPruningArguments(disable_tqdm=True, criterion="energy"), data, data).evaluate()
    right = [int(logits(model, {"input_ids": torch.tensor([row["input_ids"]])}).argmax()) == row["label"] for row in rows]
    assert figures["eval_accuracy"] == pytest.approx(sum(right) / len(right))
    compared = compare(
        model,
        ComparisonArguments(output_dir=str(tmp_path / "compared"), criteria=["energy"], reductions=[0.1], disable_tqdm=True),
        data,
        data,
    )
    assert compared.dense["metrics"] == {name.removeprefix("eval_"): value for name, value in figures.items()}
    trained = TrainingArguments(output_dir=str(tmp_path / "out"), max_steps=1, per_device_eval_batch_size=5, **QUIET)
    metrics = recover(model, RecoveryArguments(), trained, data, data, tokenizer).metrics
    assert metrics["before_accuracy"] == figures["eval_accuracy"]
    assert metrics["before_loss"] == pytest.approx(figures["eval_loss"], rel=1e-5)


def test_several_means_are_weighed_row_by_row():
    """A loss that is a sum of means over different things must not depend on how rows are batched."""
    model = tiny_encoder("bert", task="ForPreTraining")
    rows = []
    for index in range(4):
        batch = random_batch(1, 12, seed=index)
        labels = batch["input_ids"].clone()
        labels[0, 2 + 2 * index :] = -100
        rows.append(batch | {"labels": labels, "next_sentence_label": torch.tensor([index % 2])})
    together = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    figures = [held_out_figures(model, data, progress=False)["loss"] for data in (rows, [together])]
    assert figures[0] == pytest.approx(figures[1], rel=1e-5)


# ---- packed rows


def documents(count: int = 3) -> list[list[int]]:
    return [random_batch(1, 6 + 2 * index, seed=10 + index)["input_ids"][0].tolist() for index in range(count)]


def packed_row(parts: list[list[int]]) -> dict:
    return {
        "input_ids": [token for part in parts for token in part],
        "position_ids": [place for part in parts for place in range(len(part))],
    }


def packed_batch(kind: str) -> CalibrationData:
    """The same three documents in a row, as the tools of the field bring them."""
    row = packed_row(documents())
    ids, positions = torch.tensor([row["input_ids"]]), torch.tensor([row["position_ids"]])
    if kind == "rows":
        return build_calibration([row], num_samples=1, max_seq_length=64)
    if kind == "masked rows":
        return build_calibration([row | {"attention_mask": [1] * len(row["input_ids"])}], num_samples=1, max_seq_length=64)
    if kind == "lengths":  # of TRL
        return build_calibration([{"input_ids": row["input_ids"], "seq_lengths": [6, 8, 10]}], num_samples=1, max_seq_length=64)
    if kind == "collator":
        collate = DataCollatorWithFlattening(return_tensors="pt")
        return build_calibration([dict(collate([{"input_ids": ids} for ids in documents()]))])
    if kind.startswith("bounds"):  # of a collator for FlashAttention
        collate = DataCollatorWithFlattening(return_tensors="pt", return_flash_attn_kwargs=True)
        batch = dict(collate([{"input_ids": ids} for ids in documents()]))
        assert batch["cu_seq_lens_q"].flatten().tolist() == [0, 6, 14, 24]
        return build_calibration([batch if kind == "bounds" else {k: v for k, v in batch.items() if k != "position_ids"}])
    if kind == "masked batch":
        return build_calibration([{"input_ids": ids, "position_ids": positions, "attention_mask": torch.ones_like(ids)}])
    padded = {
        "input_ids": torch.cat([ids, ids]),
        "position_ids": torch.cat([positions, positions]),
        "attention_mask": torch.ones(2, ids.shape[1], dtype=torch.int64),
    }
    padded["attention_mask"][:, 20:] = 0
    return CalibrationData((padded,), {})


@pytest.mark.parametrize(
    "kind", ["rows", "masked rows", "lengths", "collator", "bounds", "bounds alone", "masked batch", "padded batch"]
)
def test_packed_documents_are_those_run_alone(kind):
    """Hidden states, loss, figures and moments."""
    model = tiny_model()
    alone = documents() if kind != "padded batch" else [*documents()[:2], documents()[2][:6]] * 2
    bare = [{"input_ids": torch.tensor([ids])} for ids in alone]
    data = packed_batch(kind)
    with torch.inference_mode():
        seen = torch.cat(
            [
                model.model(**{k: v for k, v in batch.items() if k != "labels"}, use_cache=False).last_hidden_state[0]
                for batch in data
            ]
        )
        expected = torch.cat([model.model(**batch).last_hidden_state[0] for batch in bare])
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-4)
    total = sum(float(loss_of(model, batch)) for batch in bare)
    assert sum(num_targets(model, batch) for batch in data) == sum(len(ids) - 1 for ids in alone)
    assert sum(float(loss_of(model, batch)) for batch in data) == pytest.approx(total, rel=1e-5)
    assert held_out_figures(model, data, progress=False) == pytest.approx(held_out_figures(model, bare, progress=False), rel=1e-5)
    assert data.num_tokens == sum(map(len, alone))
    for signals in ("activations", "loss"):
        found, wanted = (
            collect_moments(model, unit_groups(model), batches, signals=signals, progress=False) for batches in (data, bare)
        )
        for key, sides in wanted.items():
            torch.testing.assert_close(found[key].after.second_moment, sides.after.second_moment, rtol=1e-3, atol=1e-4)


def test_packed_rows_are_trained_and_judged_document_by_document(tmp_path):
    """Rows of unequal length in one training batch: its padding must neither be learned nor be read."""
    model = tiny_model()
    rows = [packed_row(documents(3)), packed_row(documents(2))]
    batch = causal_collator()(rows)
    assert "attention_mask" not in batch
    alone = [{"input_ids": torch.tensor([ids])} for ids in (*documents(3), *documents(2))]
    total, count = sum(float(loss_of(model, row)) for row in alone), sum(num_targets(model, row) for row in alone)
    assert float(model(**batch, use_cache=False).loss) == pytest.approx(total / count, rel=1e-5)
    args = TrainingArguments(output_dir=str(tmp_path / "out"), max_steps=1, **QUIET)
    by_lengths = [
        {"input_ids": row["input_ids"], "seq_lengths": lengths} for row, lengths in zip(rows, ([6, 8, 10], [6, 8]), strict=True)
    ]
    for given in (datasets.Dataset.from_list(rows), datasets.Dataset.from_list(by_lengths)):
        metrics = recover(copy.deepcopy(model), RecoveryArguments(), args, given, given).metrics
        assert metrics["before_loss"] == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("masks", [["completion_mask"], ["assistant_masks"], ["assistant_masks", "completion_mask"]])
def test_masks_of_trl_say_what_counts_as_labels_do(masks, tmp_path):
    """Data sets that SFTTrainer has made ready have masks in place of labels; the recovery is judged by them too."""
    model, rows = tiny_model(), prompted_rows()
    total, count = answers_alone(model, rows)
    masked = []
    for row in rows:
        asked = [int(label != -100) for label in row["labels"]]
        masked.append({"input_ids": row["input_ids"]} | dict.fromkeys(masks, asked))
    args = SpectralPruningArguments(disable_tqdm=True, criterion="energy")
    data = datasets.Dataset.from_list(masked)
    assert SpectralPruner(model, args, data, data).evaluate()["eval_loss"] == pytest.approx(total / count, rel=1e-5)
    training = TrainingArguments(output_dir=str(tmp_path / "out"), max_steps=1, **QUIET)
    metrics = recover(copy.deepcopy(model), RecoveryArguments(), training, data, data).metrics
    assert metrics["before_loss"] == pytest.approx(total / count, rel=1e-5)
    odd = [{"input_ids": [5, 6, 7], masks[0]: [1]}]
    refused(lambda: build_calibration(odd, num_samples=1), "mask of another length")


def test_bounds_that_do_not_fit_their_row_are_refused():
    batch = {"input_ids": torch.ones(1, 8, dtype=torch.int64), "cu_seq_lens_q": torch.tensor([0, 3, 6])}
    refused(lambda: build_calibration([batch]), "`cu_seq_lens_q` counts 6 tokens", "(1, 8)")


def test_packed_rows_of_unequal_length_are_batched_without_padding():
    data = build_calibration(
        [packed_row(documents(3)), packed_row(documents(2)), packed_row(documents(2))], num_samples=3, max_seq_length=64
    )
    assert [tuple(batch["input_ids"].shape) for batch in data] == [(1, 24), (2, 14)]
    assert all("attention_mask" not in batch for batch in data)


def test_positions_that_only_count_on_are_no_documents():
    """Left-padded batches bring their own positions, and keep their mask."""
    batch = random_batch(2, 12, padding="left")
    batch["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    assert documents_apart(batch) == [batch]
    model = tiny_model()
    rows = list(single_sequences([{"input_ids": batch["input_ids"][:1, 4:]}, {"input_ids": batch["input_ids"][1:]}]))
    assert float(loss_of(model, batch)) == pytest.approx(sum(float(loss_of(model, row)) for row in rows), rel=1e-5)


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "gemma3", "mistral-window", "smollm3"])
def test_families_that_keep_documents_apart_are_taken(family):
    model = tiny_model(family)
    data = packed_batch("rows")
    SpectralPruner(model, SpectralPruningArguments(criterion="energy", allocation="proportional"), data)
    alone = sum(float(loss_of(model, {"input_ids": torch.tensor([ids])})) for ids in documents())
    assert float(loss_of(model, data.batches[0])) == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("model", [tiny_encoder("bert"), tiny_model("qwen3_5")], ids=["bert", "qwen3_5"])
def test_models_that_would_read_across_documents_are_told(model):
    """An encoder takes no notice of where documents end, and a recurrent state goes on over them."""
    args = SpectralPruningArguments(criterion="energy", allocation="proportional", units=["ffn"])
    refused(lambda: SpectralPruner(model, args, packed_batch("rows")), "`position_ids`", "apart")
    SpectralPruner(model, args, [random_batch(2, 12)])


def test_perplexity_of_packed_rows_is_finite():
    assert math.isfinite(held_out_figures(tiny_model(), packed_batch("rows"), progress=False)["perplexity"])
