"""Encoder-decoders: FFN neurons of both sides are cut, padding of neither side counts, and the stock class holds the rest."""

from __future__ import annotations

import copy
import inspect
import json
from itertools import product

import pytest
import torch
import transformers
from conftest import SEQ2SEQ, random_batch, refused, tiny_seq2seq
from crias import random_plan
from products import but, each_once, only
from transformers import TrainingArguments

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.arguments import ModelArguments
from hf_spectral_prune.calibration import collect_moments
from hf_spectral_prune.cli.main import main
from hf_spectral_prune.criteria import known_criteria
from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.models.families import module_of, unit_groups
from hf_spectral_prune.models.loading import load_model
from hf_spectral_prune.models.losses import with_decoder_inputs
from hf_spectral_prune.recovery.distillation import DistillationTrainer
from hf_spectral_prune.saving.reload import check_reloads
from hf_spectral_prune.surgery import apply_plan, masked, settle_class

ALIKE = {"mbart", "m2m_100", "mt5"}
TASKS = [
    "Model",
    "ForCausalLM",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "EncoderModel",
    "ForAudioClassification",
]
HEADS = [(name, task) for name in SEQ2SEQ for task in ["", *TASKS] if not task or hasattr(transformers, SEQ2SEQ[name][0] + task)]


def inputs_of(model, rows: int, length: int, seed: int = 0, padding: str | None = None):
    """What the encoder reads."""
    if model.main_input_name == "input_ids":
        return random_batch(rows, length, seed, padding)
    size, generator = (model.config.num_mel_bins, 2 * model.config.max_source_positions), torch.Generator().manual_seed(seed)
    return {"input_features": torch.randn(rows, *size, generator=generator).to(model.dtype)}


def batch_of(model, seed: int = 0, rows: int = 3, padded: bool = True):
    """Texts of 12 tokens, or sounds, and answers of 9, padded for some."""
    batch = inputs_of(model, rows, 12, seed, "right" if padded else None)
    labels = random_batch(rows, 9, seed + 50)["input_ids"]
    if padded:
        labels[1, 6:] = -100
    return batch | {"labels": labels}


def run(model, batch):
    """The logits (or states) of a model for texts and answers, as far as its task takes them."""
    if "labels" not in inspect.signature(model.forward).parameters or type(model).__name__.endswith(
        ("Classification", "CausalLM")
    ):
        batch = {name: value for name, value in batch.items() if name != "labels"}
        if "input_ids" in batch:
            batch["input_ids"] = batch["input_ids"].clone()
            batch["input_ids"][:, -1] = 2  # the token whose state a classifier reads
        if type(model).__name__.endswith(("Model", "QuestionAnswering")) and model.config.is_encoder_decoder:
            batch["decoder_input_ids"] = batch["input_ids"] if "input_ids" in batch else random_batch(3, 9)["input_ids"]
    with torch.inference_mode():
        found = model(**batch)
    return found["logits"] if "logits" in found else found[0]


def pruner(model, batches, **fields) -> SpectralPruner:
    options = {"target_reduction": 0.3, "round_to": 4, "min_ffn_units": 4, "disable_tqdm": True}
    return SpectralPruner(model, SpectralPruningArguments(**options | fields), batches)


@pytest.mark.proves("masked", "parameters", "heads")
@pytest.mark.parametrize(("name", "task"), each_once(HEADS))
def test_removed_model_equals_masked_model_in_the_stock_class(name, task, tmp_path):
    model = tiny_seq2seq(name, task)
    model.config.use_cache = False  # that of a decoder alone is made for as many layers as the encoder has
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


@pytest.mark.proves("reload", "again")
@pytest.mark.parametrize("name", but(ALIKE | {"pegasus", "umt5", "marian", "t5-gated"}, SEQ2SEQ))
def test_run_with_answers_is_saved_reloaded_and_pruned_again(name, tmp_path):
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
    again = pruner(load_model(ModelArguments(model_name_or_path=str(tmp_path / "out"))), batches, target_reduction=0.4).prune()
    assert type(again.model) is type(output.model)
    assert num_parameters(again.model) == again.plan.parameters_after < output.plan.parameters_after


@pytest.mark.proves("generate")
@pytest.mark.parametrize(("name", "cache"), but(ALIKE | {"pegasus", "umt5", "t5-gated"}, product(SEQ2SEQ, ("dynamic", "static"))))
def test_generation_with_a_cache_equals_greedy_choice_without(name, cache):
    model = tiny_seq2seq(name)
    cut = settle_class(apply_plan(model, random_plan(model)))
    cut.generation_config.eos_token_id = cut.generation_config.forced_eos_token_id = None
    generated = cut.generate(**inputs_of(cut, 1, 6), max_new_tokens=8, do_sample=False, cache_implementation=cache)
    said = torch.tensor([[cut.config.decoder_start_token_id]])
    for _ in range(8):
        said = torch.cat([said, run(cut, inputs_of(cut, 1, 6) | {"decoder_input_ids": said})[:, -1:].argmax(-1)], dim=1)
    told = generated.shape[1]  # Whisper leaves out what it began with
    assert told >= 8 and torch.equal(generated, said[:, -told:])


@pytest.mark.proves("bfloat16")
@pytest.mark.parametrize("name", but(ALIKE | {"pegasus", "umt5", "marian"}, SEQ2SEQ))
def test_cut_model_works_in_bfloat16(name):
    model = tiny_seq2seq(name).to(torch.bfloat16)
    plan, batch = random_plan(model), batch_of(model, padded=False)
    with masked(model, {key: plan.kept_index(key) for key in plan.kept}):
        expected = run(model, batch)
    cut = settle_class(apply_plan(model, plan))
    assert cut.dtype == torch.bfloat16
    assert (run(cut, batch) - expected).abs().max() <= 0.02 * expected.abs().max()


@pytest.mark.parametrize("signals", ["activations", "loss"])
@pytest.mark.parametrize("name", ["bart", "t5", "whisper"])
def test_moments_of_each_side_are_of_its_own_real_positions(name, signals):
    model = tiny_seq2seq(name)
    batch = batch_of(model)
    groups = unit_groups(model)
    moments = collect_moments(model, groups, [batch], signals=signals, progress=False)
    counts = [moments[group.key].after.count for group in groups]
    encoder, read = (3, 3 * 12 - 4) if name == "t5" else (2, 3 * 12 - 4 if name == "bart" else 3 * 8)
    assert counts == [read] * encoder + [3 * 9 - 3] * (len(groups) - encoder)
    assert all(float(moments[group.key].after.second_moment.abs().sum()) > 0 for group in groups)
    if signals == "activations":
        seen = []
        place = "layer.2.DenseReluDense.wo" if name == "t5" else "fc2"
        handle = module_of(model, groups[-1].layer, place).register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
        run(model, batch)
        handle.remove()
        expected = seen[0][batch["labels"] != -100].double().sum(0)
        torch.testing.assert_close(moments[groups[-1].key].after.sum, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("recovery", ["full", "lora", "distill"])
@pytest.mark.parametrize("name", only(["whisper"], ["bart", "t5", "whisper"]))
def test_recovery_trains_a_pruned_model_on_answers(name, recovery, tmp_path):
    model = tiny_seq2seq(name)
    rows = [{key: value[at] for key, value in batch_of(model, rows=4).items()} for at in range(4)]
    training = {
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "report_to": "none",
        "use_cpu": True,
        "output_dir": str(tmp_path),
    }
    args = SpectralPruningArguments(
        target_reduction=0.3, round_to=4, min_ffn_units=4, disable_tqdm=True, recovery=recovery, training_args=training
    )
    teacher = tiny_seq2seq(name) if recovery == "distill" else None
    output = SpectralPruner(model, args, [batch_of(model)], [batch_of(model, 9)], train_dataset=rows, teacher=teacher).prune()
    assert type(output.model) is type(tiny_seq2seq(name)) and output.report.recovery is not None


@pytest.mark.parametrize("name", ["bart", "t5", "whisper"])
def test_teacher_teaches_both_sides(name, tmp_path):
    """A student that is its teacher has nothing to learn from it (alpha 1 leaves out the labels); a worse one has."""
    off = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout", "dropout_rate"), 0.0)
    model = tiny_seq2seq(name, **off)
    rows = [{key: value[at] for key, value in batch_of(model, rows=4).items()} for at in range(4)]
    training = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    options = {"teacher": copy.deepcopy(model), "temperature": 2.0, "alpha": 1.0, "hidden_weight": None}
    trainer = DistillationTrainer(model=model, args=training, train_dataset=rows, **options)
    inputs = trainer.data_collator(rows)
    model.train()
    assert float(trainer.compute_loss(model, inputs)) == pytest.approx(0.0, abs=1e-5)
    with torch.no_grad():
        for parameter in model.get_decoder().parameters():
            parameter.mul_(0.7)
    assert float(trainer.compute_loss(model, inputs)) > 1e-3


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


def test_rows_of_sounds_are_joined_and_drawn():
    model = tiny_seq2seq("whisper")
    features = inputs_of(model, 6, 0)["input_features"]
    rows = [{"input_features": features[at].tolist(), "labels": [5] * (3 + at % 3), "name": "a.wav"} for at in range(6)]
    taken = pruner(model, rows, num_calibration_samples=4, calibration_batch_size=2).calibration
    assert len(taken.batches) == 2 and any((batch["labels"] == -100).any() for batch in taken)
    assert all(batch["input_features"].shape == (2, 4, 16) for batch in taken)

    def collate(rows):
        assert all(row["name"] for row in rows)
        return {
            "input_features": torch.tensor([row["input_features"] for row in rows]),
            "labels": torch.tensor([[7, 8]] * len(rows)),
        }

    options = {"target_reduction": 0.3, "round_to": 4, "min_ffn_units": 4, "disable_tqdm": True}
    collated = SpectralPruner(model, SpectralPruningArguments(**options), rows, data_collator=collate)
    assert collated.calibration.num_sequences == 6
    collated.prune()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda row: row.pop("labels"), "has no `labels`"),
        (lambda row: row.update(input_features=[[0.0] * 7] * 4), "the model takes (rows, 4, 16)"),
        (lambda row: row.update(labels=[500]), "the token id 500"),
        (lambda row: row.update(labels=["w5"]), "something else than numbers"),
        (lambda row: row.pop("input_features"), "rows of `input_features`"),
    ],
)
def test_rows_of_sounds_that_do_not_fit_are_refused(change, words):
    row = {"input_features": [[0.0] * 16] * 4, "labels": [5, 6]}
    change(row)
    refused(lambda: pruner(tiny_seq2seq("whisper"), [row]).prune(), words)


def test_command_line_says_that_it_has_no_sounds(pairs, capsys):
    tiny_seq2seq("whisper").save_pretrained(pairs / "model")
    text = ["--model_name_or_path", str(pairs / "model"), "--calibration_file", str(pairs / "pairs.jsonl"), "--device", "cpu"]
    for words in (["prune", *flags(pairs), "--output_dir", str(pairs / "out")], ["score", *text], ["evaluate", *text]):
        assert main(words) == 2
        (told,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cria")]
        assert "`input_features`" in told and "`SpectralPruner`" in told
    words = ["--criterion", "magnitude", "--compensation", "none", "--target_reduction", "0.1", "--min_ffn_units", "4"]
    assert main(["prune", *text[:2], *words, "--output_dir", str(pairs / "out"), "--round_to", "4", "--device", "cpu"]) == 0
    assert "pipeline_tag: automatic-speech-recognition" in (pairs / "out" / "README.md").read_text()


def test_what_encoder_decoders_do_not_allow_is_refused_with_the_way_that_does():
    model = tiny_seq2seq("bart")
    batches = [batch_of(model)]
    refused(lambda: pruner(model, batches, layout="per_layer"), "no per-layer class", "uniform")
    refused(lambda: pruner(model, batches, compensation="sequential"), '`compensation="least_squares"`')
    refused(lambda: pruner(model, batches, recovery="blocks"), "`recovery`")
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
