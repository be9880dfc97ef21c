"""The recovery stage: never worse, one dense model, no padding in the loss, distillation's formula, clear errors."""

from __future__ import annotations

import copy
import math
import shutil
from types import SimpleNamespace

import pytest
import recovering
import torch
from conftest import encoder_batch, logits, random_batch, refused, tiny_encoder, tiny_model
from datasets import Dataset, IterableDataset
from processes import run_in_two_processes
from recovering import patterned_rows
from transformers import TrainerCallback, TrainingArguments

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.data.rows import causal_collator
from hf_spectral_prune.recovery.arguments import recovery_arguments
from hf_spectral_prune.recovery.distillation import hidden_loss, logits_loss
from hf_spectral_prune.recovery.recover import RecoveryArguments, recover


def training_args(tmp_path, **fields) -> TrainingArguments:
    defaults = {
        "output_dir": str(tmp_path / "out"),
        "max_steps": 12,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 8,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return TrainingArguments(**defaults | fields)


def pruned(batches, **fields):
    model = tiny_model(**fields)
    dense = copy.deepcopy(model)
    args = SpectralPruningArguments(
        disable_tqdm=True,
        target_reduction=0.3,
        target_scope="prunable",
        round_to=4,
        layout="per_layer",
        criterion="energy",
        compensation="none",
    )
    return SpectralPruner(model, args, batches).prune().model, dense


def test_a_higher_perplexity_is_worse_whoever_names_it(batches, tmp_path):
    model, _ = pruned(batches)
    harmful = training_args(tmp_path, metric_for_best_model="eval_perplexity", learning_rate=10.0, max_steps=2)
    output = recover(model, training_args=harmful, train_dataset=patterned_rows(16), eval_dataset=patterned_rows(8))
    assert output.metrics["after_perplexity"] > output.metrics["before_perplexity"] and output.kept == "unrecovered"


@pytest.mark.parametrize(
    ("own", "training", "greater"),
    [
        ("accuracy", {}, True),
        ("accuracy", {"metric_for_best_model": "loss"}, False),
        (None, {"metric_for_best_model": "eval_perplexity"}, False),
        (None, {"metric_for_best_model": "f1"}, True),
        (None, {"metric_for_best_model": "wer", "greater_is_better": False}, False),
    ],
)
def test_which_way_is_better_goes_with_the_metric_that_is_named(own, training, greater):
    args = SpectralPruningArguments(recovery="full", metric_for_best_model=own, training_args=training)
    assert recovery_arguments(args)[1]["greater_is_better"] is greater


@pytest.mark.parametrize("told_by", ["free room", "a write that fails"])
def test_a_full_disk_is_told_with_the_checkpoint_of_the_training_that_it_has_no_room_for(told_by, batches, tmp_path, monkeypatch):
    model, _ = pruned(batches)

    def broken_off(*args, **options):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 538304 vs 538192")

    if told_by == "free room":
        monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**6))
    else:
        monkeypatch.setattr("torch.save", broken_off)
    args = training_args(tmp_path, save_strategy="steps", save_steps=1)
    with pytest.raises(OSError, match=r"The checkpoint of the recovery's step 1 .* MB are free\. Make room"):
        recover(model, training_args=args, train_dataset=patterned_rows(16), eval_dataset=patterned_rows(8))
    assert not (tmp_path / "out" / "checkpoint-1").exists()


def test_a_metric_that_the_held_out_data_does_not_give_is_told_before_the_first_cut(batches, tmp_path):
    args = SpectralPruningArguments(recovery="full", metric_for_best_model="eval_acuracy", disable_tqdm=True, criterion="energy")
    pruner = SpectralPruner(tiny_model(), args, batches, batches, train_dataset=patterned_rows(16))
    refused(pruner.prune, "no `acuracy`", "`perplexity`")
    assert pruner.output is None and pruner.model.config.intermediate_size == tiny_model().config.intermediate_size


@pytest.mark.parametrize("method", ["full", "lora", "distill"])
def test_recovery_lowers_held_out_loss_and_leaves_one_dense_model(method, batches, tmp_path):
    model, dense = pruned(batches)
    names = list(model.state_dict())
    kind = type(model)
    teacher = dense if method == "distill" else None
    # The teacher has random weights: what it says is noise here, so the labels weigh more.
    args = RecoveryArguments(method=method, distill_alpha=0.1, distill_hidden_weight=0.1)
    output = recover(model, args, training_args(tmp_path), patterned_rows(), patterned_rows(8, seed=1), teacher=teacher)
    assert output.kept == "recovered"
    assert output.model is model and type(model) is kind and list(model.state_dict()) == names
    assert output.metrics["after_loss"] < output.metrics["before_loss"]
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.config.use_cache and "forward" not in vars(model) and not hasattr(model, "peft_config")
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(kind.from_pretrained(tmp_path / "saved"), random_batch()), logits(model, random_batch()))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_recovery_that_makes_it_worse_is_undone_and_told(method, tmp_path):
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    # Trained to expect the opposite of what is asked.
    asked = [{"input_ids": row["input_ids"][::-1]} for row in patterned_rows(8, seed=1)]
    steps = training_args(tmp_path, max_steps=30, learning_rate=2e-2)
    output = recover(model, RecoveryArguments(method=method), steps, patterned_rows(), asked)
    assert output.kept == "unrecovered"
    assert any("put back" in note for note in output.notes)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_users_metric_judges_instead_of_the_loss(tmp_path):
    def always_falling(prediction):
        always_falling.value -= 0.1
        return {"quality": always_falling.value}

    always_falling.value = 1.0
    args = training_args(tmp_path, metric_for_best_model="quality", greater_is_better=True)
    output = recover(
        tiny_model(), RecoveryArguments(), args, patterned_rows(), patterned_rows(8, seed=1), compute_metrics=always_falling
    )
    assert output.metrics["after_loss"] < output.metrics["before_loss"]
    assert output.kept == "unrecovered"


def test_without_evaluation_data_rows_are_held_out_and_told(tmp_path):
    seen = set()

    class Spy(TrainerCallback):
        def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
            seen.update(id(train_dataloader.dataset[index]) for index in range(len(train_dataloader.dataset)))

    rows = patterned_rows(40)
    output = recover(tiny_model(), RecoveryArguments(), training_args(tmp_path, max_steps=1), rows, callbacks=[Spy()])
    assert "4 rows" in output.notes[0]
    assert len(seen) == 36


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_never_enters_the_loss(side):
    """A padded batch has the loss of its rows run alone, even where the pad token is a real token elsewhere."""
    model = tiny_model()
    row, short = random_batch(2, 12, seed=3)["input_ids"].unbind()
    kept = slice(4, None) if side == "left" else slice(None, 8)
    mask = torch.zeros(12, dtype=torch.int64)
    mask[kept] = 1
    short = torch.where(mask.bool(), short, row[0])
    batch = causal_collator()([{"input_ids": row}, {"input_ids": short, "attention_mask": mask}])
    assert (batch["labels"][1][mask == 0] == -100).all()
    alone = [model(input_ids=ids[None], labels=ids[None]).loss * (len(ids) - 1) for ids in (row, short[kept])]
    expected = sum(alone) / (len(row) - 1 + 8 - 1)
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    torch.testing.assert_close(model(**batch, position_ids=positions).loss, expected)


def test_collator_pads_rows_of_different_length_and_keeps_given_labels(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)  # all tests of the session share it
    tokenizer.padding_side = "left"
    batch = causal_collator(tokenizer)([{"input_ids": [5, 6, 7]}, {"input_ids": [5, 6, 7, 8]}])
    # The 5 behind the padding would be predicted from it.
    assert batch["labels"].tolist() == [[-100, -100, 6, 7], [-100, 6, 7, 8]]
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}]
    assert causal_collator(tokenizer)(rows)["labels"].tolist() == [[-100, -100, 6, 7], [-100, 6, 7, 8]]


def test_classification_labels_pass_through(tmp_path):
    model = tiny_model(task="ForSequenceClassification")
    rows = [{"input_ids": [3 + 40 * (index % 2)] * 8, "label": index % 2} for index in range(32)]
    output = recover(model, RecoveryArguments(), training_args(tmp_path), rows, rows[:8])
    assert output.kept == "recovered"
    assert output.metrics["after_loss"] < 0.7 * output.metrics["before_loss"]


def test_adapters_are_saved_on_request_and_make_the_same_model(batches, tmp_path):
    from peft import PeftModel

    model, _ = pruned(batches)
    base = copy.deepcopy(model)
    args = RecoveryArguments(method="lora", keep_adapters=True, lora_target_modules=["down_proj", "q_proj"])
    output = recover(model, args, training_args(tmp_path), patterned_rows(), patterned_rows(8, seed=1))
    merged = PeftModel.from_pretrained(base, output.adapters).merge_and_unload()
    torch.testing.assert_close(logits(merged, random_batch()), logits(model, random_batch()))
    assert torch.equal(merged.model.layers[0].mlp.up_proj.weight, model.model.layers[0].mlp.up_proj.weight)


def test_distillation_losses_are_their_formulas():
    """Against plain loops in float64 over the positions that count."""
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 2, 5, 7, dtype=torch.float64)
    labels = torch.tensor([[1, 2, 3, -100, -100], [4, 5, 6, 1, 2]])
    total, count = 0.0, 0
    for row in range(2):
        for position in range(4):
            if labels[row, position + 1] != -100:
                goal = (teacher[row, position] / 3).softmax(-1)
                total += float((goal * (goal.log() - (student[row, position] / 3).log_softmax(-1))).sum())
                count += 1
    loss, counted = logits_loss({"logits": student}, {"logits": teacher}, labels, 3.0, shift=True)
    assert counted == count == 6
    assert math.isclose(float(loss), 9 * total / count, rel_tol=1e-5)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    cosines = [
        float(student[row, position] @ teacher[row, position] / student[row, position].norm() / teacher[row, position].norm())
        for row, position in mask.nonzero().tolist()
    ]
    expected = 1 - sum(cosines) / len(cosines)
    assert math.isclose(float(hidden_loss((student, teacher), (teacher, teacher), mask)), expected / 2, rel_tol=1e-5)


def test_distillation_alone_brings_the_student_to_the_teacher(batches, tmp_path):
    model, dense = pruned(batches)
    batch = random_batch(16, 16, seed=5)
    rows = [{"input_ids": ids} for ids in batch["input_ids"]]
    before = (logits(model, batch) - logits(dense, batch)).norm()
    dense.save_pretrained(tmp_path / "teacher")
    args = RecoveryArguments(method="distill", distill_alpha=1.0, distill_temperature=1.0)
    # Random text cannot be predicted, so the loss says nothing here: what counts is the distance to the teacher.
    judge = {"metric_for_best_model": "distance", "greater_is_better": False}
    steps = training_args(tmp_path, max_steps=30, per_device_train_batch_size=16, gradient_accumulation_steps=1, **judge)
    goal = logits(dense, batch).numpy()
    recover(
        model,
        args,
        steps,
        rows,
        rows,
        teacher=str(tmp_path / "teacher"),
        compute_metrics=lambda found: {"distance": float(((found.predictions - goal) ** 2).mean())},
    )
    assert (logits(model, batch) - logits(dense, batch)).norm() < 0.5 * before


def test_accumulated_distillation_steps_equal_one_large_step(batches, tmp_path):
    weights = []
    rows = [row | {"labels": [-100] * (index % 5) + row["input_ids"][index % 5 :]} for index, row in enumerate(patterned_rows(8))]
    for size, accumulation in ((8, 1), (2, 4)):
        model, dense = pruned(batches)
        fields = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation, "max_steps": 1}
        sgd = training_args(tmp_path, optim="sgd", max_grad_norm=0.0, **fields)
        args = RecoveryArguments(method="distill", distill_hidden_weight=0.0)
        recover(model, args, sgd, rows, rows, teacher=dense)
        weights.append(torch.cat([value.flatten() for value in model.state_dict().values()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-5)


def test_bf16_training_leaves_a_float32_model(tmp_path):
    model = tiny_model()
    output = recover(model, RecoveryArguments(), training_args(tmp_path, bf16=True), patterned_rows(), patterned_rows(8, seed=1))
    assert output.kept == "recovered"
    assert model.dtype == torch.float32 and logits(model, random_batch()).dtype == torch.float32 and "forward" not in vars(model)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "quantise"}, "`full`, `lora`, `distill`"),
        ({"lora_r": 0}, "at least 1"),
        ({"lora_dropout": 1.0}, "below 1"),
        ({"distill_temperature": 0.0}, "above 0"),
        ({"distill_alpha": 1.5}, "between 0 and 1"),
        ({"distill_hidden_weight": -1.0}, "not be negative"),
    ],
    ids=str,
)
def test_options_that_cannot_work_are_told(fields, message):
    with pytest.raises(ValueError, match=message):
        RecoveryArguments(**fields)


def test_missing_lora_targets_are_told_before_any_step(tmp_path):
    model = tiny_model()
    args = RecoveryArguments(method="lora", lora_target_modules=["q_proj", "query_key_value"])
    with pytest.raises(ValueError, match=r"`query_key_value`.*`self_attn\.q_proj`") as raised:
        recover(model, args, training_args(tmp_path), patterned_rows())
    assert "\n" not in str(raised.value) and "`q_proj`," not in str(raised.value)
    assert not hasattr(model, "peft_config")


def test_teachers_that_do_not_fit_are_told(tmp_path):
    model, args = tiny_model(), RecoveryArguments(method="distill")
    for teacher, message in (
        (None, "Pass `teacher`"),
        (model, "the pruned model itself"),
        (tiny_model(num_hidden_layers=2), "`num_hidden_layers` is 2"),
    ):
        with pytest.raises(ValueError, match=message):
            recover(model, args, training_args(tmp_path), patterned_rows(), teacher=teacher)


def test_data_that_cannot_judge_is_told(tmp_path):
    model = tiny_model(task="ForSequenceClassification")
    rows = [{"input_ids": [5, 6, 7]}] * 8
    with pytest.raises(ValueError, match="the data has no `labels`"):
        recover(model, RecoveryArguments(), training_args(tmp_path), rows, rows)
    with pytest.raises(ValueError, match="Pass `eval_dataset`"):
        recover(tiny_model(), RecoveryArguments(), training_args(tmp_path), IterableDataset.from_generator(lambda: iter(rows)))


@pytest.fixture(scope="module")
def two_processes(forks, tmp_path_factory):
    """What each of two data-parallel processes ended with, and the folder of the first one's weights."""
    folder = tmp_path_factory.mktemp("recovering")
    return run_in_two_processes(forks, "recovering.py", folder), folder


@pytest.mark.parametrize("method", recovering.RECOVERIES)
def test_two_processes_recover_the_same_model_as_one(method, two_processes, tmp_path):
    (first, second), folder = two_processes
    assert first[method]["digest"] == second[method]["digest"]
    assert first[method]["kept"] == second[method]["kept"] == "recovered"
    alone = recovering.recovered(tmp_path, method, batch_size=8)
    # The same batches of held-out rows, and the same global batches of training rows: only the order of sums differs.
    for name in ("before_loss", "after_loss"):
        assert first[method]["metrics"][name] == second[method]["metrics"][name]
        assert math.isclose(first[method]["metrics"][name], alone.metrics[name], rel_tol=1e-4)
    weights = torch.load(folder / f"{method}.pt", weights_only=True)
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_two_processes_undo_alike(two_processes):
    """Also where each would judge otherwise."""
    (first, second), _ = two_processes
    for case in ("worse", "disputed"):
        assert first[case]["kept"] == second[case]["kept"] == "unrecovered"
        assert first[case]["digest"] == second[case]["digest"] == first["before"]["digest"]
    assert second["disputed"]["metrics"]["after_quality"] > second["disputed"]["metrics"]["before_quality"]


@pytest.mark.parametrize("marked", [False, True])
def test_model_that_a_trainer_prepared_before_is_left_so(marked, tmp_path):
    """accelerate's mark would keep it from being trained on several processes together."""
    model = tiny_model()
    if marked:
        model._is_accelerate_prepared = True
    recover(model, RecoveryArguments(), training_args(tmp_path, max_steps=1), patterned_rows(), patterned_rows(8, seed=1))
    assert vars(model).get("_is_accelerate_prepared", False) == marked


def test_launch_that_shards_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="copy of the whole model"):
        recover(tiny_model(), RecoveryArguments(), training_args(tmp_path), patterned_rows())


@pytest.mark.parametrize("method", ["full", "lora", "distill"])
def test_float16_weights_are_trained_in_float32_and_stay_float16(method, tmp_path):
    model = tiny_model().half()
    teacher = tiny_model() if method == "distill" else None
    output = recover(
        model,
        RecoveryArguments(method=method),
        training_args(tmp_path),
        patterned_rows(),
        patterned_rows(8, seed=1),
        teacher=teacher,
    )
    assert output.kept == "recovered" and math.isfinite(output.metrics["after_loss"])
    assert {value.dtype for value in model.parameters()} == {torch.float16}
    assert any("float32" in note for note in output.notes) == (method != "lora")


def test_a_recovery_goes_on_from_a_whole_checkpoint_only(tmp_path):
    def again(**fields):
        args = training_args(tmp_path, max_steps=6, save_strategy="steps", save_steps=3, resume_from_checkpoint=True, **fields)
        return recover(tiny_model(), RecoveryArguments(), args, patterned_rows(), patterned_rows(8, seed=1))

    whole = again()  # begins anew, for there is none yet
    shutil.rmtree(tmp_path / "out" / "checkpoint-6")
    assert again().metrics["after_loss"] == whole.metrics["after_loss"]
    state = tmp_path / "out" / "checkpoint-6" / "trainer_state.json"
    for damage in (
        lambda: state.write_text(state.read_text()[:50]),
        lambda: (state.parent / "optimizer.pt").unlink(),
        state.unlink,
    ):
        damage()
        refused(again, "checkpoint-6", "half-written")
    shutil.rmtree(state.parent)
    weights = tmp_path / "out" / "checkpoint-3" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(again, "checkpoint-3", "half-written")


def test_a_frozen_model_is_told_before_the_cut(batches):
    model = tiny_model().requires_grad_(False)
    options = SpectralPruningArguments(target_reduction=0.2, recovery="full", disable_tqdm=True)
    refused(lambda: SpectralPruner(model, options, batches, train_dataset=batches), "All weights are frozen", "requires_grad_")
    refused(lambda: recover(model, train_dataset=batches), "All weights are frozen")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["w5 w6"], "no tokenizer"),
        (Dataset.from_dict({"input_ids": []}), "has no rows"),
        (Dataset.from_dict({"input_ids": [[5, 6, 7]]}), "one row, and none can be held out"),
        (Dataset.from_dict({"input_ids": [[5, 6, 10**6]] * 4}), "beyond the model's embedding"),
        (Dataset.from_dict({"input_ids": [[5, 6] * 2000] * 4}), "has 4000 tokens, and the model takes at most"),
        ((row for row in ({"input_ids": [5, 6, 7]},)), "is a generator"),
        ([random_batch(4), random_batch(4)], "nested `input_ids`"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_told_before_the_cut(rows, words, batches):
    options = SpectralPruningArguments(
        target_reduction=0.2, recovery="lora", training_args={"max_steps": 1, "use_cpu": True}, disable_tqdm=True
    )
    refused(lambda: SpectralPruner(tiny_model(), options, batches, train_dataset=rows), words)


def test_rows_without_labels_are_told_before_a_classifier_is_cut():
    model = tiny_encoder("bert")
    rows = Dataset.from_dict({"input_ids": [[5, 6, 7]] * 4})
    options = SpectralPruningArguments(target_reduction=0.2, recovery="full", units="ffn", disable_tqdm=True)
    refused(lambda: SpectralPruner(model, options, [encoder_batch(model)], train_dataset=rows), "no `labels`")


def test_a_tokenizer_by_its_name_and_data_by_its_path_are_answered_with_what_to_give(tmp_path, batches):
    options = SpectralPruningArguments(target_reduction=0.2, disable_tqdm=True)
    refused(lambda: SpectralPruner(tiny_model(), options, batches, processing_class="org/model"), "AutoTokenizer.from_pretrained")
    refused(lambda: SpectralPruner(tiny_model(), options, tmp_path / "a.txt"), "is the path", "`load_texts`")


def test_a_data_set_of_torch_that_never_ends_by_itself_is_read_to_its_length(batches):
    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            assert 0 <= index < 4
            return {"input_ids": torch.arange(3, 13)}

    options = SpectralPruningArguments(target_reduction=0.2, recovery="full", disable_tqdm=True)
    assert len(SpectralPruner(tiny_model(), options, batches, train_dataset=Rows()).train_dataset) == 4
