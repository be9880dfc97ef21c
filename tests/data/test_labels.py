"""Labels mean what their names say, whatever their order; several per row become vectors; what cannot be told is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from conftest import VOCABULARY, random_batch, refused, tiny_encoder
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.data.images import build_images
from hf_spectral_prune.data.labels import label_ids, read_labels, with_model_ids
from hf_spectral_prune.data.texts import collate_rows, tokenised_row, unpadded_row
from hf_spectral_prune.evaluation.metrics import multi_label_figures

MNLI = ["entailment", "neutral", "contradiction"]


def config(names: list[str], **fields: Any) -> Any:
    id2label = dict(enumerate(names))
    return tiny_encoder(
        "bert", num_labels=len(names), id2label=id2label, label2id={n: i for i, n in id2label.items()}, **fields
    ).config


def table(values: list[Any], feature: Any = None, **columns: Any) -> Dataset:
    found = Dataset.from_dict({"text": ["w5"] * len(values), "label": values, **columns})
    return found if feature is None else found.cast_column("label", feature)


NLI = config(["CONTRADICTION", "NEUTRAL", "ENTAILMENT"])


def test_classes_are_matched_by_name_without_regard_to_case():
    assert label_ids(MNLI, NLI) == [2, 1, 0]
    assert label_ids(["Not Entailment", "entailment"], config(["entailment", "not_entailment"])) == [1, 0]
    assert label_ids(["neutral", "entailment"], NLI) == [1, 2]
    assert read_labels(table([0, 1, 2], ClassLabel(names=MNLI)), "label", NLI) == [2, 1, 0]
    assert read_labels(table(["entailment", "Neutral", "2"]), "label", NLI) == [2, 1, 2]


def test_where_one_side_has_no_names_numbers_count():
    assert label_ids(MNLI, config(["LABEL_0", "LABEL_1", "LABEL_2"])) == [0, 1, 2]
    assert label_ids(["0", "1", "2"], NLI) == [0, 1, 2]
    assert read_labels(table([2, 0, 1]), "label", NLI) == [2, 0, 1]


def test_names_that_cannot_be_reconciled_are_refused():
    refused(lambda: label_ids(["yes", "maybe", "no"], NLI), "`yes`, `maybe`, `no`", "`CONTRADICTION`, `NEUTRAL`, `ENTAILMENT`")
    refused(lambda: read_labels(table([0, -1], ClassLabel(names=MNLI)), "label", NLI), "Row 1 has the label -1", "hidden")
    refused(lambda: read_labels(table(["5"]), "label", NLI), "Row 0 has the label '5'", "0 to 2")
    refused(lambda: read_labels(table(["high"]), "label", config(["x"])), "Row 0 has the label 'high'", "regression")


TOXIC = config(["toxic", "obscene", "threat"], problem_type="multi_label_classification")


@pytest.mark.parametrize(
    ("values", "feature"),
    [
        ([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]], None),
        ([[True, False, True], [False, False, False]], None),
        ([["Threat", "toxic"], []], None),
        ([[0, 2], []], None),
        ([[1, 0], []], List(ClassLabel(names=["Toxic", "threat", "obscene"]))),
    ],
)
def test_lists_become_vectors_of_the_models_labels(values, feature):
    assert read_labels(table(values, feature), "label", TOXIC) == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]


def test_several_columns_become_vectors_in_the_models_order():
    found = table([0, 0], threat=[1, 0], toxic=[0, 1], obscene=[0, 1])
    assert read_labels(found, "threat, toxic, obscene", TOXIC) == [[0.0, 0.0, 1.0], [1.0, 1.0, 0.0]]
    refused(lambda: read_labels(found, "threat,toxic", TOXIC), "names 2 columns", "3 labels")
    refused(lambda: read_labels(found, "threat,toxic,nothing", TOXIC), "`label_column` is 'nothing'")
    wrong = table([0], threat=[2], toxic=[0], obscene=[0])
    refused(lambda: read_labels(wrong, "threat,toxic,obscene", TOXIC), "Row 0 has the labels [0, 0, 2]")


def test_lists_are_refused_where_a_row_has_one_label():
    single = config(["a", "b"], problem_type="single_label_classification")
    refused(lambda: read_labels(table([[1.0, 0.0]]), "label", single), "lists of labels", "`single_label_classification`")
    refused(lambda: read_labels(table([[0.5, 0.0, 1.0]]), "label", TOXIC), "Row 0 has the labels [0.5, 0.0, 1.0]")


def test_a_vector_of_labels_stays_whole_in_a_row_of_its_own_length():
    row = tokenised_row({"input_ids": [5, 6, 7], "labels": [1.0, 0.0, 1.0]}, 2)
    assert row["input_ids"].tolist() == [5, 6] and row["labels"].tolist() == [1.0, 0.0, 1.0]
    batch = collate_rows([tokenised_row({"input_ids": [5, 6, 7], "labels": [1.0, 0.0, 1.0]}), row])
    assert batch["labels"].tolist() == [[1.0, 0.0, 1.0]] * 2
    assert unpadded_row({name: value[1] for name, value in batch.items()})["labels"].tolist() == [1.0, 0.0, 1.0]


def test_figures_of_several_labels_are_those_written_down_by_hand():
    logits = np.array([[2.0, -1.0], [3.0, 1.0], [-1.0, -2.0]])
    references = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    # right rows: the first; 2 true positives of 3 said and 3 true
    assert multi_label_figures(logits, references) == {"accuracy": pytest.approx(1 / 3), "f1": pytest.approx(2 / 3)}


def test_images_are_labelled_by_name_too():
    features = Features({"pixel_values": List(List(List(Value("float32")))), "label": ClassLabel(names=["DOG", "cat"])})
    found = Dataset.from_dict({"pixel_values": [[[[0.0]]], [[[1.0]]]], "label": [0, 1]}, features=features)
    names = config(["cat", "dog"])
    assert next(iter(build_images(found, config=names)))["labels"].tolist() == [1, 0]
    refused(lambda: build_images(found, config=config(["bird", "fish"])), "`DOG` is none of those")


@pytest.fixture
def toxic_folder(tmp_path: Path, tokenizer, monkeypatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    model = tiny_encoder(
        "bert", num_labels=3, id2label=TOXIC.id2label, label2id=TOXIC.label2id, problem_type="multi_label_classification"
    )
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    rows = []
    for seed in range(40):
        ids = 40 + random_batch(1, 12, seed)["input_ids"] % 50  # below, the unknown word `w3` splits others in two
        with torch.inference_mode():
            held = (model(ids, attention_mask=torch.ones_like(ids)).logits[0] > 0).tolist()
        rows.append(
            {"text": " ".join(f"w{word}" for word in ids[0].tolist() if word < VOCABULARY), "labels": [*map(float, held)]}
        )
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_the_command_line_prunes_and_measures_a_multi_label_model(toxic_folder, capsys):
    from hf_spectral_prune.cli.main import main

    folder = str(toxic_folder / "m")
    common = ["--model_name_or_path", folder, "--label_column", "labels", "--max_seq_length", "16", "--device", "cpu"]
    assert main(["evaluate", *common, "--eval_file", str(toxic_folder / "t.jsonl")]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["accuracy"] > 0.9 and figures["f1"] > 0.9  # by what the model itself says
    options = ["--calibration_file", str(toxic_folder / "t.jsonl"), "--output_dir", str(toxic_folder / "out")]
    options += ["--target_reduction", "0.5", "--target_scope", "prunable", "--units", "ffn", "--self_check", "False"]
    assert main(["prune", *common, *options]) == 0, capsys.readouterr().err
    report = json.loads((toxic_folder / "out" / "pruning_report.json").read_text())
    assert "after_f1" in json.dumps(report)


@pytest.mark.parametrize("kind", ["table", "torch", "drawn", "stream"])
def test_tokenised_rows_in_python_mean_what_their_names_say(kind):
    """A classifier that is right on every row by name says so, and its recovery is trained on the same labels."""
    model = tiny_encoder("bert", num_labels=3, id2label=dict(enumerate(NLI.label2id)), label2id=NLI.label2id)
    batch = random_batch(24, 12)
    right = model(**batch).logits.argmax(-1).tolist()
    names = [MNLI.index(NLI.id2label[number].lower()) for number in right]
    assert names != right
    features = Features({"input_ids": List(Value("int64")), "label": ClassLabel(names=MNLI)})
    data: Any = Dataset.from_dict({"input_ids": batch["input_ids"].tolist(), "label": names}, features=features)
    if kind == "torch":
        data = data.with_format("torch")
    if kind == "drawn":
        data = data.shuffle(seed=1)
    if kind == "stream":
        data = data.to_iterable_dataset()
    arguments = SpectralPruningArguments(target_reduction=0.2, criterion="magnitude", compensation="none", disable_tqdm=True)
    pruner = SpectralPruner(model, arguments, eval_dataset=data, train_dataset=data)
    assert pruner.evaluate()["eval_accuracy"] == 1
    rows = {tuple(map(int, row["input_ids"])): int(row["label"]) for row in pruner.train_dataset}
    assert [rows[tuple(ids)] for ids in batch["input_ids"].tolist()] == right


def test_tokenised_rows_with_other_names_are_refused_and_padding_stays():
    model = tiny_encoder("bert", num_labels=3, id2label=dict(enumerate(NLI.label2id)), label2id=NLI.label2id)
    rows = Dataset.from_dict({"input_ids": [[5, 6]], "labels": [0]})
    odd = rows.cast_column("labels", ClassLabel(names=["yes", "maybe", "no"]))
    arguments = SpectralPruningArguments(target_reduction=0.2, criterion="magnitude", compensation="none", disable_tqdm=True)
    refused(lambda: SpectralPruner(model, arguments, eval_dataset=odd), "`yes`, `maybe`, `no`")
    tags = Dataset.from_dict({"input_ids": [[5, 6, 7]], "labels": [[-100, 0, 2]]}).cast_column(
        "labels", List(ClassLabel(names=MNLI))
    )
    assert with_model_ids(tags, NLI)["labels"][0] == [-100, 2, 0]


@pytest.mark.parametrize("task", ["ForSequenceClassification", "ForTokenClassification"])
@pytest.mark.parametrize(("label", "remedy"), [(7, "`num_labels`"), (-1, "hidden")])
@pytest.mark.parametrize("place", ["calibration_dataset", "eval_dataset"])
def test_labels_that_the_head_does_not_have_are_told_before_any_loss_is_taken(task, label, remedy, place):
    model = tiny_encoder("bert", task=task, num_labels=3)
    tokens = task == "ForTokenClassification"
    labels: list[Any] = [[-100, 0, label], [1, 2, 0]] if tokens else [2, label]
    data = {place: Dataset.from_dict({"input_ids": [[5, 6, 7], [8, 9, 10]], "labels": labels})}
    arguments = SpectralPruningArguments(target_reduction=0.2, criterion="magnitude", compensation="none", disable_tqdm=True)
    refused(
        lambda: SpectralPruner(model, arguments, data.get("calibration_dataset"), data.get("eval_dataset")),
        f"`{place}` has the label {label}",
        "3 labels (0 to 2)",
        remedy,
    )


@pytest.mark.parametrize(
    ("task", "problem", "labels", "message"),
    [
        ("ForSequenceClassification", None, [0.0, 1.0], "have one floats"),
        ("ForSequenceClassification", None, [[1, 0, 0], [0, 1, 0]], "3 floats a row that may have several"),
        ("ForSequenceClassification", "multi_label_classification", [[1, 0, 1], [0, 1, 0]], "have 3 whole numbers"),
        ("ForTokenClassification", None, [[0, 1], [1, 0]], "a token, -100 where none counts"),
    ],
)
def test_labels_of_another_form_are_told_with_the_form_that_is_read(task, problem, labels, message):
    model = tiny_encoder("bert", task=task, num_labels=3, problem_type=problem)
    rows = Dataset.from_dict({"input_ids": [[5, 6, 7], [8, 9, 10]], "labels": labels})
    arguments = SpectralPruningArguments(target_reduction=0.2, criterion="magnitude", compensation="none", disable_tqdm=True)
    refused(lambda: SpectralPruner(model, arguments, rows), "`calibration_dataset`", message)


def test_rows_of_question_answering_keep_where_the_answers_are():
    model = tiny_encoder("bert", task="ForQuestionAnswering")
    rows = {"input_ids": [[5, 6, 7, 8], [8, 9]], "start_positions": [1, 0], "end_positions": [3, 1]}
    arguments = SpectralPruningArguments(target_reduction=0.2, criterion="fisher", units="ffn", disable_tqdm=True)
    pruner = SpectralPruner(model, arguments, Dataset.from_dict(rows), Dataset.from_dict(rows))
    [batch] = pruner.calibration.batches
    assert batch["start_positions"].tolist() == [1, 0] and batch["end_positions"].tolist() == [3, 1]
    assert pruner.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize("name", ["label", "labels"])
def test_text_with_labels_is_read_row_by_row_for_a_classifier(name, tokenizer):
    """Packed as text without labels is, it would lose them, and the figures with them."""
    model = tiny_encoder("bert", num_labels=3, id2label=dict(enumerate(NLI.label2id)), label2id=NLI.label2id)
    batch = {"input_ids": 10 + random_batch(24, 12)["input_ids"] % 80}
    texts = tokenizer.batch_decode(batch["input_ids"])
    encoded = tokenizer(texts, return_tensors="pt", padding=True)
    right = model(**encoded).logits.argmax(-1).tolist()
    numbers = [MNLI.index(NLI.id2label[number].lower()) for number in right]
    data = Dataset.from_dict({"text": texts, name: numbers}).cast_column(name, ClassLabel(names=MNLI))
    arguments = SpectralPruningArguments(target_reduction=0.2, criterion="magnitude", compensation="none", disable_tqdm=True)
    pruner = SpectralPruner(model, arguments, data, data, tokenizer, train_dataset=data)
    assert pruner.calibration.num_sequences == len(pruner.train_dataset) == 24
    assert pruner.evaluate()["eval_accuracy"] == 1


def test_a_config_that_numbers_its_labels_in_two_ways_is_told():
    odd = config(["neg", "pos"])
    odd.label2id = {"neg": 1, "pos": 0}
    for labels in (table([0, 1], ClassLabel(names=["pos", "neg"])), table(["neg", "pos"])):
        refused(lambda labels=labels: read_labels(labels, "label", odd), "`label2id`", "`id2label`", "`neg`")
    assert read_labels(table([0, 1]), "label", odd) == [0, 1]


def test_text_whose_labels_are_another_tasks_is_answered_with_how_to_give_the_text_alone(tokenizer):
    model = tiny_encoder("bert", num_labels=2)
    news = Dataset.from_dict({"text": ["w5 w6 w7"] * 4, "label": [0, 1, 2, 3]})
    arguments = SpectralPruningArguments(target_reduction=0.2, criterion="magnitude", compensation="none", max_seq_length=4)
    refused(lambda: SpectralPruner(model, arguments, news, None, tokenizer), "label 2", "`dataset.select_columns('text')`")
    assert SpectralPruner(model, arguments, news.select_columns("text"), None, tokenizer).calibration is not None
