"""The shipped metrics against counts by hand and scikit-learn's published definitions."""

from __future__ import annotations

import math
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from conftest import random_batch, tiny_model
from transformers import EvalPrediction

import hf_spectral_prune.evaluation.metrics as metrics
from hf_spectral_prune.cli.arguments import RunArguments
from hf_spectral_prune.cli.inputs_labelled import metric_of
from hf_spectral_prune.evaluation.figures import perplexity
from hf_spectral_prune.evaluation.metrics import SHIPPED, load_metric, regression_figures, token_losses

TRUE = [0, 1, 2, 1, 0, 2, 2, 1]
SAID = [0, 1, 1, 1, 2, 2, 0, 1]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_modules_load_by_name_and_by_path(name):
    by_path = evaluate.load(str(metrics.__path__[0] + f"/{name}"))
    assert by_path.name == load_metric(name).name == name
    assert by_path.description


def test_accuracy_by_hand():
    accuracy = load_metric("accuracy")
    assert accuracy.compute(predictions=SAID, references=TRUE) == {"accuracy": 5 / 8}
    assert accuracy.compute(predictions=SAID, references=TRUE, normalize=False) == {"accuracy": 5}
    weights = [1, 2, 3, 4, 5, 6, 7, 8]
    assert accuracy.compute(predictions=SAID, references=TRUE, sample_weight=weights) == {"accuracy": 21 / 36}


def test_f1_by_hand():
    f1 = load_metric("f1")
    binary = f1.compute(predictions=[0, 1, 1, 0, 1], references=[0, 1, 0, 1, 1])
    assert binary == {"f1": 2 * 2 / (2 * 2 + 1 + 1)}
    # class 0: 1 hit, said twice, true twice; class 1: 3, 4, 3; class 2: 1, 2, 3.
    own = [2 / 4, 6 / 7, 2 / 5]
    assert f1.compute(predictions=SAID, references=TRUE, average=None)["f1"] == pytest.approx(own)
    assert f1.compute(predictions=SAID, references=TRUE, average="macro")["f1"] == pytest.approx(sum(own) / 3)
    weighted = (2 * own[0] + 3 * own[1] + 3 * own[2]) / 8
    assert f1.compute(predictions=SAID, references=TRUE, average="weighted")["f1"] == pytest.approx(weighted)
    assert f1.compute(predictions=SAID, references=TRUE, average="micro")["f1"] == pytest.approx(5 / 8)
    assert f1.compute(predictions=[0, 0], references=[0, 0])["f1"] == 0.0


@pytest.mark.parametrize("average", ["binary", "micro", "macro", "weighted", None])
@pytest.mark.parametrize("weighted", [False, True])
def test_f1_and_accuracy_equal_scikit_learns(average, weighted):
    sklearn = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    classes = 2 if average == "binary" else 4
    for _ in range(5):
        true, said = generator.integers(0, classes, (2, 20))
        weights = generator.random(20) if weighted else None
        ours = load_metric("f1").compute(predictions=said, references=true, average=average, sample_weight=weights)["f1"]
        theirs = sklearn.f1_score(true, said, average=average, sample_weight=weights)
        assert np.asarray(ours) == pytest.approx(theirs)
        ours = load_metric("accuracy").compute(predictions=said, references=true, sample_weight=weights)["accuracy"]
        assert ours == pytest.approx(sklearn.accuracy_score(true, said, sample_weight=weights))


def test_perplexity_is_that_of_the_evaluation():
    model = tiny_model()
    batch = random_batch(4, 16, padding="right")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with torch.inference_mode():
        losses, counts = token_losses(model(**batch).logits, labels)
    result = load_metric("perplexity").compute(predictions=losses, references=counts)
    expected = perplexity(model, [batch], progress=False)
    assert sum(counts) == expected["num_tokens"]
    assert result["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-5)
    assert result["mean_perplexity"] == pytest.approx(
        sum(math.exp(loss / count) for loss, count in zip(losses, counts, strict=True)) / 4
    )


def test_uniform_logits_have_the_vocabulary_as_perplexity():
    losses, counts = token_losses(np.zeros((2, 5, 7)), np.ones((2, 5), dtype=int))
    assert load_metric("perplexity").compute(predictions=losses, references=counts)["perplexity"] == pytest.approx(7)


def test_what_cannot_work_is_told():
    with pytest.raises(ValueError, match=r"no metric `no_such_metric`.*`accuracy`"):
        load_metric("no_such_metric", trust_remote_code=True)
    with pytest.raises(ValueError, match='`average="binary"`'):
        load_metric("f1").compute(predictions=SAID, references=TRUE)
    with pytest.raises(ValueError, match="no predicted token"):
        load_metric("perplexity").compute(predictions=[0.0], references=[0])


def test_a_regression_has_an_error_and_a_correlation():
    figures = regression_figures(np.array([0.0, 1.0, 2.5]), np.array([0.0, 1.0, 2.0]))
    assert figures["mse"] == pytest.approx(0.25 / 3)
    assert figures["pearsonr"] == pytest.approx(np.corrcoef([0, 1, 2.5], [0, 1, 2])[0, 1])
    assert regression_figures(np.ones(3), np.arange(3)) == {"mse": pytest.approx(2 / 3)}


@pytest.mark.parametrize(
    ("metric", "logits", "labels", "expected"),
    [
        ("accuracy", [[0.3], [1.2], [2.9]], [0.0, 1.1, 2.0], {"mse": 0.91 / 3}),
        ("accuracy", [[2.0, 1.0], [0.0, 1.0]], [0, 0], {"accuracy": 0.5}),
        ("f1", [[2.0, 1.0], [0.0, 1.0]], [0, 1], {"f1": 1.0}),
        ("f1", [[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]], [0, 1, 2], {"f1": (1 + 2 / 3 + 0) / 3}),
    ],
)
def test_the_command_lines_metric_fits_the_task(metric, logits, labels, expected):
    """Values are not rounded to classes, and F1 of many classes is their mean."""
    compute = metric_of(RunArguments(label_column="label", metric=metric, calibration_file="rows.csv"))
    figures = compute(EvalPrediction(np.array(logits), np.array(labels)))
    assert {name: figures[name] for name in expected} == pytest.approx(expected)


def test_code_of_others_runs_only_where_it_is_trusted(tmp_path):
    """By path or by name, also where a folder here is called like a metric."""
    source = (Path(metrics.__path__[0]) / "accuracy" / "accuracy.py").read_text()
    ran = tmp_path / "ran"
    own = tmp_path / "own"
    own.mkdir()
    (own / "own.py").write_text(source + f"\nopen({str(ran)!r}, 'w').close()\n")
    for name in (str(own), str(own / "own.py"), "someone/metric"):
        with pytest.raises(ValueError, match="`trust_remote_code`"):
            load_metric(name)
    assert not ran.exists()
    assert load_metric(str(own), trust_remote_code=True).compute(predictions=[1, 0], references=[1, 1])["accuracy"] == 0.5
    assert ran.exists()
