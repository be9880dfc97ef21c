"""Encoder-decoders: FFN neurons of both sides are cut, padding of neither side counts, and the stock class holds the rest."""

from __future__ import annotations

import copy
import inspect
import json

import pytest
import torch
import transformers
from conftest import SEQ2SEQ, random_batch, refused, tiny_seq2seq
from crias import random_plan
from products import but

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.arguments import ModelArguments
from hf_spectral_prune.calibration import collect_moments
from hf_spectral_prune.cli.main import main
from hf_spectral_prune.criteria import known_criteria
from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.models.families import module_of, unit_groups
from hf_spectral_prune.models.loading import load_model
from hf_spectral_prune.models.losses import with_decoder_inputs
from hf_spectral_prune.saving.reload import check_reloads
from hf_spectral_prune.surgery import apply_plan, masked, settle_class

ALIKE = {"mbart", "m2m_100", "mt5"}
TASKS = ["Model", "ForSequenceClassification", "ForQuestionAnswering", "EncoderModel"]
HEADS = [(name, "") for name in SEQ2SEQ]
HEADS += [(name, task) for name in ("bart", "t5") for task in TASKS if hasattr(transformers, SEQ2SEQ[name][0] + task)]


def batch_of(model, seed: int = 0, rows: int = 3, padded: bool = True):
    """Texts of 12 tokens and answers of 9, padded for some."""
    batch = random_batch(rows, 12, seed, "right" if padded else None)
    labels = random_batch(rows, 9, seed + 50)["input_ids"]
    if padded:
        labels[1, 6:] = -100
    return batch | {"labels": labels}


def run(model, batch):
    """The logits (or states) of a model for texts and answers, as far as its task takes them."""
    if "labels" not in inspect.signature(model.forward).parameters or "Classification" in type(model).__name__:
        batch = {name: value for name, value in batch.items() if name != "labels"}
        batch["input_ids"] = batch["input_ids"].clone()
        batch["input_ids"][:, -1] = 2  # the token whose state a classifier reads
        if type(model).__name__.endswith(("Model", "Answering")) and model.config.is_encoder_decoder:
            batch["decoder_input_ids"] = batch["input_ids"]
    with torch.inference_mode():
        found = model(**batch)
    return found["logits"] if "logits" in found else found[0]


def pruner(model, batches, **fields) -> SpectralPruner:
    options = {"target_reduction": 0.3, "round_to": 4, "min_ffn_units": 4, "disable_tqdm": True}
    return SpectralPruner(model, SpectralPruningArguments(**options | fields), batches)


@pytest.mark.parametrize(("name", "task"), but(ALIKE, HEADS))
def test_removed_model_equals_masked_model_in_the_stock_class(name, task, tmp_path):
    model = tiny_seq2seq(name, task)
    plan = random_plan(model)
    cut = settle_class(apply_plan(copy.deepcopy(model), plan))
    assert type(cut) is type(model)
    assert num_parameters(cut) == plan.parameters_after < plan.parameters_before
    batch = batch_of(model, padded=False)
    with masked(model, {key: plan.kept_index(key) for key in plan.kept}):
        expected = run(model, batch)
    torch.testing.assert_close(run(cut, batch), expected, rtol=1e-5, atol=1e-5)
    assert (expected - run(model, batch)).abs().max() > 1e-3, "the mask must change something"
    cut.save_pretrained(tmp_path)
    assert torch.equal(run(type(cut).from_pretrained(tmp_path), batch), run(cut, batch))


@pytest.mark.parametrize("name", but(ALIKE | {"pegasus", "umt5"}, SEQ2SEQ))
def test_run_with_answers_is_saved_reloaded_generates_and_is_pruned_again(name, tmp_path):
    model = tiny_seq2seq(name)
    batches = [batch_of(model, seed) for seed in range(2)]
    first = SpectralPruner(
        model,
        SpectralPruningArguments(
            target_reduction=0.3, round_to=4, min_ffn_units=4, disable_tqdm=True, output_dir=str(tmp_path / "out")
        ),
        batches,
        eval_dataset=[batch_of(model, 9)],
    )
    output = first.prune()
    first.save_model()  # reloads in a fresh process
    assert num_parameters(output.model) == output.plan.parameters_after < output.plan.parameters_before
    assert output.report.metrics_after["after_loss"] > 0
    generated = output.model.generate(**random_batch(1, 6), max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert generated.shape == (1, 6)
    again = pruner(load_model(ModelArguments(model_name_or_path=str(tmp_path / "out"))), batches, target_reduction=0.4).prune()
    assert type(again.model) is type(output.model)
    assert num_parameters(again.model) == again.plan.parameters_after < output.plan.parameters_after


@pytest.mark.parametrize("signals", ["activations", "loss"])
@pytest.mark.parametrize("name", ["bart", "t5"])
def test_moments_of_each_side_are_of_its_own_real_positions(name, signals):
    model = tiny_seq2seq(name)
    batch = batch_of(model)
    groups = unit_groups(model)
    moments = collect_moments(model, groups, [batch], signals=signals, progress=False)
    counts = [moments[group.key].after.count for group in groups]
    encoder = 2 if name == "bart" else 3
    assert counts == [3 * 12 - 4] * encoder + [3 * 9 - 3] * (5 - encoder)
    assert all(float(moments[group.key].after.second_moment.abs().sum()) > 0 for group in groups)
    if signals == "activations":
        seen = []
        place = "fc2" if name == "bart" else "layer.2.DenseReluDense.wo"
        handle = module_of(model, 4, place).register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
        run(model, batch)
        handle.remove()
        expected = seen[0][batch["labels"] != -100].double().sum(0)
        torch.testing.assert_close(moments["layers.4." + groups[-1].kind].after.sum, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("criterion", sorted(known_criteria()))
def test_every_criterion_scores_both_sides(criterion):
    model = tiny_seq2seq("t5")
    options = {"num_steps": 2, "max_steps": 3, "num_sequences": 1} if criterion == "integrated_gradients" else {}
    scores = pruner(model, [batch_of(model)], criterion=criterion, criterion_args=options).score()
    assert set(scores) == {f"layers.{layer}.ffn" for layer in range(5)}


def test_text_alone_calibrates_too(tokenizer):
    texts = [" ".join(f"w{index}" for index in range(3 + at, 60 + at)) for at in range(8)]
    args = SpectralPruningArguments(target_reduction=0.3, round_to=4, min_ffn_units=4, disable_tqdm=True, max_seq_length=16)
    output = SpectralPruner(tiny_seq2seq("bart"), args, texts, processing_class=tokenizer).prune()
    assert num_parameters(output.model) == output.plan.parameters_after


@pytest.fixture
def pairs(tmp_path, tokenizer):
    """A folder with a tiny T5, and 60 texts with an answer to each."""
    tiny_seq2seq("t5").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    words = [[f"w{3 + (7 * row + at) % 90}" for at in range(12)] for row in range(60)]
    rows = [{"text": " ".join(row), "answer": " ".join(row[: 2 + len(row[0]) % 3 + at % 4])} for at, row in enumerate(words)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def flags(folder, **fields) -> list[str]:
    options = {"model_name_or_path": folder / "model", "calibration_file": folder / "pairs.jsonl", "text_column": "text"}
    options |= {"label_column": "answer", "max_seq_length": 32, "num_eval_samples": 8, "device": "cpu"}
    return [word for name, value in (options | fields).items() for word in (f"--{name}", str(value))]


def test_command_line_calibrates_and_measures_on_texts_with_answers(pairs, tokenizer, capsys):
    more = {"output_dir": pairs / "out", "round_to": 4, "min_ffn_units": 4, "target_reduction": 0.3, "criterion": "taylor"}
    more |= {"recovery": "full", "training_args": '{"max_steps": 1, "report_to": "none", "use_cpu": true}'}
    assert main(["prune", *flags(pairs, **more), "--disable_tqdm"]) == 0
    report = json.loads((pairs / "out" / "pruning_report.json").read_text())
    assert report["metrics_after"]["after_loss"] > 0 and "before_accuracy" not in report["metrics_before"]
    held_out = {json.loads(line)["text"]: json.loads(line)["answer"] for line in (pairs / "pairs.jsonl").read_text().splitlines()}
    capsys.readouterr()
    (pairs / "others.jsonl").write_text((pairs / "pairs.jsonl").read_text())
    assert main(["evaluate", *flags(pairs, eval_file=pairs / "others.jsonl", num_eval_samples=60)]) == 0
    found = json.loads(capsys.readouterr().out)
    model = load_model(ModelArguments(model_name_or_path=str(pairs / "model"))).eval()
    losses, tokens = 0.0, 0
    for text, answer in held_out.items():
        labels = tokenizer(text_target=answer, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            losses += float(model(**tokenizer(text, return_tensors="pt"), labels=labels).loss) * labels.numel()
        tokens += labels.numel()
    assert found["loss"] == pytest.approx(losses / tokens, rel=1e-4)


def test_answers_that_are_no_texts_are_told_with_their_row(pairs, capsys):
    lines = (pairs / "pairs.jsonl").read_text().splitlines()
    lines[3] = json.dumps({"text": "w3 w4", "answer": None})
    (pairs / "pairs.jsonl").write_text("\n".join(lines))
    for column, words in (("answer", "row 3 has None"), ("reply", "no such column: ['text', 'answer']")):
        assert main(["prune", *flags(pairs, output_dir=pairs / "out", label_column=column)]) == 2
        assert words in capsys.readouterr().err


def test_configs_without_a_bos_token_are_read():
    """As those of T5 are on the Hub."""
    prefix, generating, sizes = SEQ2SEQ["t5"]
    config = getattr(transformers, f"{prefix}Config")(vocab_size=64, eos_token_id=2, pad_token_id=0, **sizes)
    assert not hasattr(config, "bos_token_id")
    model = getattr(transformers, prefix + generating)(config).eval()
    inputs = random_batch(2, 6)
    given = with_decoder_inputs(model, inputs)["decoder_input_ids"]
    assert torch.equal(given[:, 1:], inputs["input_ids"][:, :-1]) and given[:, 0].eq(0).all()
    check_reloads(model)


def test_rows_whose_answers_differ_in_length_are_padded():
    rows = [{"input_ids": [5, 6, 7, 8][:count], "labels": [9, 10, 11, 12, 13][: count + 1]} for count in (2, 3, 4, 4)]
    output = pruner(tiny_seq2seq("t5"), rows).prune()
    assert num_parameters(output.model) == output.plan.parameters_after


def test_what_encoder_decoders_do_not_allow_is_refused_with_the_way_that_does():
    model = tiny_seq2seq("bart")
    batches = [batch_of(model)]
    refused(lambda: pruner(model, batches, layout="per_layer"), "no per-layer class", "uniform")
    refused(lambda: pruner(model, batches, compensation="sequential"), '`compensation="least_squares"`')
    refused(lambda: pruner(model, batches, units=["heads"]), "the bart family has `ffn`, `decoder_ffn`")


def test_what_an_encoder_decoder_is_measured_by_is_told(pairs, capsys):
    words = ["evaluate", str(pairs / "model"), "--device", "cpu", "--max_seq_length", "32"]
    assert main([*words, "--eval_file", str(pairs / "pairs.jsonl")]) == 2
    assert "a `T5ForConditionalGeneration` is measured on rows with labels. Set `--label_column`." in capsys.readouterr().err
    for command in (words, ["prune", *flags(pairs, output_dir=pairs / "out")]):
        more = ["--eval_file", str(pairs / "pairs.jsonl"), "--label_column", "answer"] if command is words else []
        assert main([*command, *more, "--metric", "f1"]) == 2
        assert "`metric` `f1` is for labels, and a `T5ForConditionalGeneration` gives text" in capsys.readouterr().err
    assert not (pairs / "out").exists()
