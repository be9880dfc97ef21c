"""The command line: whole runs on a tiny model, and one clear line with exit 2 for whatever cannot work."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from conftest import VOCABULARY, tiny_encoder, tiny_model
from products import only
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from hf_spectral_prune.cli.main import main

FLAGS = ["--target_reduction", "0.3", "--target_scope", "prunable", "--round_to", "4", "--min_ffn_units", "4"]
FLAGS += ["--max_seq_length", "32", "--num_calibration_samples", "8", "--num_eval_samples", "4", "--disable_tqdm"]


def flags(folder, **more) -> list[str]:
    values = {"model_name_or_path": folder / "model", "calibration_file": folder / "text.txt", "output_dir": folder / "out"}
    words = [*FLAGS]
    for name, value in (values | more).items():
        if value is not None:
            words += [f"--{name}", str(value)]
    return words


def fails(capsys, words: list[str], *messages: str) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.strip().splitlines() if line.startswith("cria")]
    assert len(lines) == 1, captured.err
    for message in messages:
        assert message in lines[0]


def test_weights_on_the_disk_bring_no_word_of_other_libraries(folder, tmp_path, capfd):
    assert main(["prune", *flags(folder, offload_folder=tmp_path / "offload")]) == 0
    assert logging.getLogger("accelerate.big_modeling").level == logging.ERROR
    assert "meta device" not in capfd.readouterr().err


@pytest.mark.usefixtures("report_pages")
def test_prune_writes_a_folder_that_loads(folder, capsys):
    assert main(["prune", *flags(folder)]) == 0
    assert "Held-out perplexity" in capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(folder / "out")
    report = json.loads((folder / "out" / "pruning_report.json").read_text())
    assert sum(parameter.numel() for parameter in model.parameters()) == report["parameters_after"]
    assert report["self_check"]["plain"]["max_abs_diff"] == 0.0
    assert report["calibration"]["num_sequences"] == 8
    assert "held out" in report["evaluation"]["source"]
    files = {path.name for path in (folder / "out").iterdir()}
    assert files >= {"model.safetensors", "pruning_plan.json", "pruning_report.json", "report.html", "plots", "README.md"}


def test_a_length_that_nobody_asked_for_is_what_the_model_takes(folder, capsys):
    words = flags(folder)
    del words[(at := words.index("--max_seq_length")) : at + 2]
    assert main(["prune", *words]) == 0
    report = json.loads((folder / "out" / "pruning_report.json").read_text())
    assert report["calibration"]["max_seq_length"] == tiny_model().config.max_position_embeddings == 128
    assert main(["prune", *words, "--max_seq_length", "129", "--overwrite_output_dir"]) == 2
    assert "the model takes at most 128 positions" in capsys.readouterr().err


def test_recipe_gives_the_values_and_flags_win(folder):
    recipe = folder / "recipe.yaml"
    recipe.write_text(f"model_name_or_path: {folder / 'model'}\nlayout: per_layer\ncriterion: energy\nallocation: scores\n")
    words = flags(folder, model_name_or_path=None, criterion="magnitude")
    assert main(["prune", str(recipe), *words]) == 0
    report = json.loads((folder / "out" / "pruning_report.json").read_text())
    assert report["layout"] == "per_layer"
    assert report["arguments"]["criterion"] == "magnitude"


def test_resume_from_the_latest_begins_anew_where_there_is_none(folder, capsys):
    """One command in a restart script."""
    assert main(["prune", *flags(folder, resume_from_checkpoint="latest", save_strategy="steps")]) == 0
    assert "the run starts over" in capsys.readouterr().err
    assert (folder / "out" / "pruning_plan.json").is_file()


def test_calibration_on_a_mix_of_sources(folder):
    mix = f"{folder / 'text.txt'}:0.5,python_docs:0.25,self:0.25"
    given = {"calibration_file": None, "calibration": mix, "recovery": "full", "num_recovery_samples": 12}
    given["training_args"] = '{"max_steps": 1}'
    assert main(["prune", *flags(folder, **given)]) == 0
    report = json.loads((folder / "out" / "pruning_report.json").read_text())
    parts = report["calibration"]["parts"]
    assert {name: part["num_sequences"] for name, part in parts.items()} == {"text.txt": 4, "python_docs": 2, "self": 2}
    assert report["calibration"]["num_sequences"] == 8 and len(report["calibration"]["digest"]) == 16
    # Nothing is measured on what the model has written itself.
    assert len(report["evaluation"]["parts"]) == 2 and report["evaluation"]["num_sequences"] >= 4


def test_calibration_from_the_model_itself(folder):
    assert main(["prune", *flags(folder, calibration_file=None, calibration="self")]) == 0
    report = json.loads((folder / "out" / "pruning_report.json").read_text())
    assert report["calibration"]["num_sequences"] == 8


def test_a_split_of_its_own_is_measured_on(folder):
    words = (folder / "text.txt").read_text().split()
    (folder / "data").mkdir()
    (folder / "data" / "train.txt").write_text(" ".join(words[:1500]))
    (folder / "data" / "test.txt").write_text(" ".join(words[1500:]))
    more = {"calibration_file": None, "dataset_name": folder / "data", "eval_split": "test", "num_eval_samples": 4}
    assert main(["prune", *flags(folder, **more)]) == 0
    protocol = json.loads((folder / "out" / "pruning_report.json").read_text())["evaluation"]
    assert protocol["source"] == "data:test"
    assert protocol["num_sequences"] == 4


@pytest.fixture
def classifier(tmp_path, tokenizer):
    """A tiny classifier with its tokenizer, and tables of words whose label is the parity of the first."""
    tiny_encoder("bert", num_labels=2, id2label={0: "even", 1: "odd"}, label2id={"even": 0, "odd": 1}).save_pretrained(
        tmp_path / "model"
    )
    tokenizer.save_pretrained(tmp_path / "model")
    generator = torch.Generator().manual_seed(0)
    for name, number in (("train", 80), ("dev", 40)):
        words = torch.randint(3, VOCABULARY, (number, 6), generator=generator).tolist()
        lines = [" ".join(f"w{word}" for word in row) + "\t" + ("odd" if row[0] % 2 else "even") for row in words]
        (tmp_path / f"{name}.tsv").write_text("sentence\tverdict\n" + "\n".join(lines) + "\n")
    return tmp_path


def labelled(folder, **more) -> list[str]:
    given = {"calibration_file": folder / "train.tsv", "label_column": "verdict", "layout": "per_layer", "num_eval_samples": 40}
    return flags(folder, **(given | more))


def test_labelled_texts_give_a_loss_and_a_metric(classifier, capsys):
    words = labelled(classifier, eval_file=classifier / "dev.tsv", criterion="taylor", recovery="full")
    assert main(["prune", *words, "--training_args", '{"max_steps": 2, "use_cpu": true}']) == 0
    printed = capsys.readouterr()
    assert "Held-out accuracy" in printed.out
    for name in ("train.tsv", "dev.tsv"):
        assert f"{classifier / name}: The text is read from column `sentence`; its first row begins: 'w" in printed.err
    report = json.loads((classifier / "out" / "pruning_report.json").read_text())
    assert report["evaluation"]["num_sequences"] == 40
    assert set(report["metrics_after"]) == {"after_loss", "after_accuracy"}
    capsys.readouterr()
    words = ["--eval_file", str(classifier / "dev.tsv"), "--label_column", "verdict", "--max_seq_length", "32"]
    assert main(["evaluate", "--model_name_or_path", str(classifier / "out"), *words]) == 0
    out = capsys.readouterr().out
    figures = json.loads(out[out.index("{") :])
    assert figures["accuracy"] == pytest.approx(report["metrics_after"]["after_accuracy"])


def test_pruning_stops_on_the_users_metric(classifier):
    words = labelled(classifier, stop_metric="eval_accuracy", stop_drop=0, num_rounds=3, target_reduction=0.8)
    assert main(["prune", *words]) == 0
    report = json.loads((classifier / "out" / "pruning_report.json").read_text())
    assert report["metrics_after"]["after_accuracy"] >= report["metrics_before"]["before_accuracy"]
    assert "rows held out" in report["evaluation"]["source"]
    assert report["reduction"] < 0.8


@pytest.mark.parametrize(
    ("more", "messages"),
    [
        ({"label_column": "label"}, ["`label_column` is 'label'", "verdict"]),
        ({"text_pair_column": "second"}, ["`text_pair_column`", "sentence"]),
        ({"label_column": "sentence", "text_column": "verdict"}, ["Row 0", "even, odd"]),
        ({"metric": "no-such-metric"}, ["The metric `no-such-metric` is Python code", "trust_remote_code"]),
        ({"calibration_file": None, "calibration": "python_docs"}, ["`label_column` needs a table"]),
    ],
)
def test_labels_that_cannot_work_are_one_line(classifier, capsys, more, messages):
    fails(capsys, ["prune", *labelled(classifier, **more)], *messages)


def test_a_metric_of_others_is_not_run_untrusted(classifier, capsys):
    (classifier / "own.py").write_text(f"open({str(classifier / 'ran')!r}, 'w').close()")
    fails(capsys, ["prune", *labelled(classifier, metric=classifier / "own.py")], "own.py", "`trust_remote_code`")
    assert not (classifier / "ran").exists()


def test_labels_for_a_language_model_are_refused(folder, capsys):
    (folder / "table.csv").write_text("text,label\nw3 w4,1\n")
    fails(capsys, ["prune", *flags(folder, calibration_file=folder / "table.csv", label_column="label")], "LlamaForCausalLM")


def test_score_prints_every_unit(folder, capsys):
    words = [str(folder / "model"), "--calibration_file", str(folder / "text.txt"), "--max_seq_length", "32", "--disable_tqdm"]
    assert main(["score", *words, "--criterion", "energy", "--num_calibration_samples", "8"]) == 0
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert {key: len(scores) for key, scores in result["scores"].items()}["layers.0.ffn"] == 24


@pytest.mark.parametrize("criterion", only(["magnitude"], ["magnitude", "random"]))
def test_criteria_that_read_no_data_run_without(criterion, folder, capsys):
    words = flags(folder, calibration_file=None, criterion=criterion)
    assert main(["score", str(folder / "model"), "--criterion", criterion, "--disable_tqdm"]) == 0
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert result["calibration"] is None and len(result["scores"]["layers.0.ffn"]) == 24
    assert main(["prune", *words]) == 0
    report = json.loads((folder / "out" / "pruning_report.json").read_text())
    assert report["calibration"] is None and report["evaluation"] is None
    AutoModelForCausalLM.from_pretrained(folder / "out")


def test_without_data_a_file_to_measure_on_is_still_measured_on(folder):
    assert main(["prune", *flags(folder, calibration_file=None, criterion="magnitude", eval_file=folder / "text.txt")]) == 0
    report = json.loads((folder / "out" / "pruning_report.json").read_text())
    assert report["calibration"] is None and report["metrics_after"]["after_perplexity"] > 1


@pytest.mark.parametrize(
    "more",
    [
        {"criterion": "spectral"},
        {"compensation": "least_squares"},
        {"layout": "per_layer"},
        {"recovery": "full"},
    ],
)
def test_whatever_reads_data_is_refused_without(more, folder, capsys):
    fails(
        capsys, ["prune", *flags(folder, **({"calibration_file": None, "criterion": "magnitude"} | more))], "nothing to calibrate"
    )
    assert not (folder / "out").exists()


def test_evaluate_reads_only_the_split_that_is_measured(folder, capsys):
    (folder / "data").mkdir()
    (folder / "data" / "test.txt").write_text((folder / "text.txt").read_text())  # there is no other split
    words = ["--model_name_or_path", str(folder / "model"), "--max_seq_length", "32", "--num_eval_samples", "4"]
    assert main(["evaluate", *words, "--dataset_name", str(folder / "data"), "--eval_split", "test"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out[out.index("{") :])["evaluation"]["num_sequences"] == 4


def test_evaluate_on_a_file_beside_a_data_set(classifier, capsys):
    (classifier / "data").mkdir()
    (classifier / "data" / "train.csv").write_text("sentence,verdict\nw3 w4,odd\n")
    words = ["--model_name_or_path", str(classifier / "model"), "--max_seq_length", "32", "--label_column", "verdict"]
    words += ["--dataset_name", str(classifier / "data"), "--eval_file", str(classifier / "dev.tsv")]
    assert main(["evaluate", *words]) == 0
    out = capsys.readouterr().out
    figures = json.loads(out[out.index("{") :])
    assert figures["evaluation"]["num_sequences"] == 40 and figures["evaluation"]["source"] == "dev.tsv"


@pytest.mark.slow
def test_labelled_texts_without_a_text_or_a_label(classifier, capsys):
    lines = (classifier / "train.tsv").read_text()
    (classifier / "train.tsv").write_text(f"{lines}\todd\nNA\teven\nnull\todd\n")
    assert main(["prune", *labelled(classifier, recovery="full", training_args='{"max_steps": 2, "use_cpu": true}')]) == 0
    (classifier / "train.tsv").write_text(f"{lines}w3 w4\t\n")
    fails(capsys, ["prune", *labelled(classifier, output_dir=classifier / "other")], "Row 80 has no label", "`verdict`")


def test_evaluate_prints_json(folder, capsys):
    words = ["--model_name_or_path", str(folder / "model"), "--eval_file", str(folder / "text.txt"), "--max_seq_length", "32"]
    assert main(["evaluate", *words]) == 0
    out = capsys.readouterr().out
    figures = json.loads(out[out.index("{") :])
    assert figures["perplexity"] > 1
    assert figures["decode_tokens_per_second"] > 0


def test_speed_is_measured_within_the_positions_of_a_roberta_that_writes(folder, capsys, tokenizer):
    tiny_encoder("roberta", task="ForCausalLM", is_decoder=True).save_pretrained(folder / "roberta")
    tokenizer.save_pretrained(folder / "roberta")
    words = ["--model_name_or_path", str(folder / "roberta"), "--eval_file", str(folder / "text.txt"), "--num_eval_samples", "2"]
    assert main(["evaluate", *words, "--max_seq_length", "126"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out[out.index("{") :])["decode_tokens_per_second"] > 0


def test_help_explains_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit) as raised:
        main(["prune", "--help"])
    assert raised.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--target_reduction" in text
    assert "(default: 0.2)" in text


def test_no_command_prints_the_commands(capsys):
    assert main([]) == 2
    assert "cria COMMAND" in capsys.readouterr().out
    assert main(["--help"]) == 0


@pytest.mark.parametrize(
    ("more", "messages"),
    [
        ({"target_reduction": "0"}, ["target_reduction", "between 0 and 1"]),
        ({"target_reduction": "1"}, ["target_reduction", "between 0 and 1"]),
        ({"target_reduction": "many"}, ["target_reduction"]),
        ({"target_reduction": "0.98"}, ["out of reach"]),
        ({"target_reducton": "0.2"}, ["--target_reduction"]),
        ({"layout": "mixed"}, ["layout", "per_layer"]),
        ({"criterion": "spectrum"}, ["`spectral`"]),
        ({"criterion_args": "{x"}, ["criterion_args", "JSON"]),
        ({"model_name_or_path": "/nowhere/model"}, ["/nowhere/model", "not a folder"]),
        ({"model_name_or_path": None}, ["model_name_or_path"]),
        ({"calibration_file": "/nowhere/text.txt"}, ["/nowhere/text.txt"]),
        ({"calibration_file": None}, ["calibration_file"]),
        ({"max_seq_length": "4000"}, ["max_seq_length", "128"]),
        ({"gguf_file": "absent.gguf"}, ["absent.gguf"]),
        ({"device": "tpu9"}, ["device"]),
        ({"output_dir": None}, ["--output_dir"]),
        ({"eval_split": "test"}, ["`eval_split` `test`", "`dataset_name`"]),
        ({"calibration_file": None, "dataset_name": "x", "eval_split": "train"}, ["calibrated on", "another split"]),
        ({"calibration_file": None, "dataset_name": "x", "eval_split": "test", "eval_file": "f"}, ["Give one"]),
        ({"num_rounds": "0"}, ["num_rounds"]),
        ({"resume_from_checkpoint": "/nowhere"}, ["no checkpoint"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_input_is_one_line_and_exit_2(folder, capsys, more, messages):
    fails(capsys, ["prune", *flags(folder, **more)], *messages)
    assert not (folder / "out").exists()


def test_too_short_and_empty_texts_are_told(folder, capsys):
    (folder / "short.txt").write_text("w3 w4 w5")
    fails(capsys, ["prune", *flags(folder, calibration_file=folder / "short.txt")], "max_seq_length")
    (folder / "empty.txt").write_text("")
    fails(capsys, ["prune", *flags(folder, calibration_file=folder / "empty.txt")], "empty")


def test_unknown_recipe_key_names_the_nearest(folder, capsys):
    (folder / "recipe.yaml").write_text("criterium: energy\n")
    fails(capsys, ["prune", str(folder / "recipe.yaml"), *flags(folder)], "criterium", "`criterion`")
    fails(capsys, ["prune", "absent.yaml", *flags(folder)], "absent.yaml")
    (folder / "recipe.yaml").write_text("- a\n- b\n")
    fails(capsys, ["prune", str(folder / "recipe.yaml"), *flags(folder)], "name: value")


@pytest.mark.parametrize(
    ("line", "messages"),
    [
        ("num_rounds: 2.5", ["recipe.yaml", "`num_rounds` is 2.5", "a whole number"]),
        ("units: ffn", ["recipe.yaml", "`units` is 'ffn'", "a list"]),
        ("target_reduction: null", ["recipe.yaml", "`target_reduction` is None", "a number"]),
        ("eval_strategy: epoch", ["`eval_strategy`", "`steps`"]),
        ("{recovery: full, training_args: {learning_rate: fast}}", ["`training_args`: `learning_rate`", "a number"]),
        ("{recovery: lora, recovery_args: {lora_alpha: [1]}}", ["`recovery_args`: `lora_alpha`", "a number"]),
        ("device: mps", ["`device` `mps`", "float64", "`cpu`"]),
    ],
)
def test_recipe_values_of_another_type_are_one_line_and_exit_2(folder, capsys, line, messages):
    (folder / "recipe.yaml").write_text(f"{line}\n")
    words = ["--model_name_or_path", str(folder / "model"), "--calibration_file", str(folder / "text.txt")]
    words += ["--output_dir", str(folder / "out"), "--max_seq_length", "32", "--num_calibration_samples", "8"]
    fails(capsys, ["prune", str(folder / "recipe.yaml"), *words], *messages)
    assert not (folder / "out").exists()


@pytest.mark.slow
def test_recipe_trains_with_a_learning_rate_of_1e_4(folder):
    (folder / "recipe.yaml").write_text("recovery: full\ntraining_args: {learning_rate: 1e-4, max_steps: 2, use_cpu: true}\n")
    assert main(["prune", str(folder / "recipe.yaml"), *flags(folder)]) == 0
    report = json.loads((folder / "out" / "pruning_report.json").read_text())
    assert report["arguments"]["training_args"]["learning_rate"] == 1e-4
    assert report["recovery"]["kept"] in ("recovered", "unrecovered")


def test_folder_without_tokenizer_is_told(folder, capsys):
    for file in (folder / "model").glob("token*"):
        file.unlink()
    fails(capsys, ["prune", *flags(folder)], "tokenizer")


def test_unknown_family_is_told(folder, capsys, tokenizer):
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=1)
    MambaForCausalLM(config).save_pretrained(folder / "mamba")
    tokenizer.save_pretrained(folder / "mamba")
    fails(capsys, ["prune", *flags(folder, model_name_or_path=folder / "mamba")], "`mamba`", "known family")


def test_model_whose_text_part_alone_could_be_pruned_is_told(folder, tokenizer, capsys):
    from transformers import PaliGemmaConfig

    PaliGemmaConfig().save_pretrained(folder / "whole")
    tokenizer.save_pretrained(folder / "whole")
    save_file({"weight": torch.zeros(1)}, folder / "whole" / "model.safetensors")
    fails(capsys, ["prune", *flags(folder, model_name_or_path=folder / "whole")], "`paligemma`", "`gemma`", "get_decoder()")


@pytest.mark.parametrize("layout", only(["per_layer"], ["uniform", "per_layer"]))
def test_text_model_of_one_that_sees_images_is_pruned_alone(layout, folder, tokenizer):
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    text = tiny_model("qwen3_5").config.to_dict()
    sight = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    whole = Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text, vision_config=sight))
    whole.save_pretrained(folder / "whole")
    tokenizer.save_pretrained(folder / "whole")
    words = flags(folder, model_name_or_path=folder / "whole", layout=layout, allocation="scores", min_ffn_units=4)
    assert main(["prune", *words, "--units", "ffn"]) == 0
    pruned = AutoModelForCausalLM.from_pretrained(folder / "out")
    assert torch.equal(pruned.model.embed_tokens.weight, whole.model.language_model.embed_tokens.weight)
    ways = json.loads((folder / "out" / "pruning_report.json").read_text())["self_check"]
    assert ways and all(way["max_abs_diff"] == 0.0 for way in ways.values())


def test_full_output_folder_is_refused(folder, capsys):
    (folder / "out").mkdir()
    (folder / "out" / "mine.txt").write_text("mine")
    fails(capsys, ["prune", *flags(folder)], "not empty")
    assert (folder / "out" / "mine.txt").read_text() == "mine"


def test_unknown_command_names_the_nearest(capsys):
    fails(capsys, ["prun"], "`prune`")


@pytest.mark.parametrize("method", only(["distill"], ["lora", "distill"]))
def test_prune_recovers_on_text_that_is_not_held_out(method, folder, monkeypatch):
    from hf_spectral_prune.recovery import recover as recovery

    seen = []
    rows_of = recovery.training_rows
    monkeypatch.setattr(recovery, "training_rows", lambda *given: seen.append(rows_of(*given)) or seen[-1])
    training = '{"max_steps": 3, "learning_rate": 1e-3, "use_cpu": true}'
    assert main(["prune", *flags(folder, recovery=method, training_args=training)]) == 0
    report = json.loads((folder / "out" / "pruning_report.json").read_text())
    assert report["recovery"]["kept"] in ("recovered", "unrecovered")
    train, held_out = ([tuple(row["input_ids"].tolist()) for row in rows] for rows in seen)
    assert held_out and len(train) + len(held_out) == 68  # all blocks of the text
    assert not set(train) & set(held_out)
    assert sorted(path.name for path in folder.iterdir()) == ["model", "out", "text.txt"]
    assert type(AutoModelForCausalLM.from_pretrained(folder / "out")).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("packing", [False, True])
def test_rows_to_recover_on_leave_out_what_is_held_out(large, packing, folder, monkeypatch):
    from hf_spectral_prune.arguments import SpectralPruningArguments
    from hf_spectral_prune.cli.arguments import RunArguments
    from hf_spectral_prune.cli.inputs_text import load_text, text_recovery_rows
    from hf_spectral_prune.data import blocks as data
    from hf_spectral_prune.models.loading import load_tokenizer

    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(3, 30, (300,), generator=generator).tolist()
    texts = [" ".join(f"w{word}" for word in torch.randint(3, VOCABULARY, (length,), generator=generator)) for length in lengths]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    if large:
        monkeypatch.setattr(data, "_WHOLE_CHARACTERS", 1_000)
        monkeypatch.setattr(data, "_PIECE_CHARACTERS", 200)
    run = RunArguments(
        model_name_or_path=str(folder / "model"),
        calibration_file=str(folder / "texts.jsonl"),
        packing=packing,
        max_seq_length=32,
        num_calibration_samples=24,
        num_eval_samples=16,
    )
    args, model, tokenizer = SpectralPruningArguments(recovery="full"), tiny_model(), load_tokenizer(run)
    calibration, held_out = load_text(run, model, tokenizer, args.seed)
    rows = text_recovery_rows(run, model, tokenizer, calibration, held_out, args.seed)

    def tokens(ids, mask):
        return tuple(ids[mask.bool()].tolist())

    hidden = {tokens(*pair) for batch in held_out for pair in zip(batch["input_ids"], batch["attention_mask"], strict=True)}
    trained = [tokens(row["input_ids"], row["attention_mask"]) for row in rows]
    assert len(hidden) == 16 and len(trained) > 50
    assert not hidden & set(trained)
    assert all(row["attention_mask"].all() for row in rows)


def test_recovery_that_cannot_work_is_one_line(folder, capsys):
    words = flags(folder, recovery="lora", recovery_args='{"lora_target_modules": ["c_attn"]}')
    fails(capsys, ["prune", *words], "`c_attn`", "`self_attn.q_proj`")
    fails(capsys, ["prune", *flags(folder, recovery="full", training_args='{"max_step": 3}')], "`max_steps`")
    fails(capsys, ["prune", *flags(folder, stop_metric="eval_accuracy")], "`eval_perplexity`")
    assert not (folder / "out").exists()


def test_several_processes_are_refused(folder, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    fails(capsys, ["score", *flags(folder)], "`WORLD_SIZE` is 2", "`cria score` works in one", "`accelerate launch`")
    assert not (folder / "out").exists()


def test_texts_that_are_not_packed_are_measured_one_by_one(folder, tokenizer, capsys):
    """What `--packing False` says holds for a file to measure on too."""
    texts = [" ".join(f"w{5 + (at * row) % 80}" for at in range(4 + row)) for row in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = [str(folder / "model"), "--eval_file", str(folder / "rows.jsonl"), "--max_seq_length", "32", "--packing", "False"]
    assert main(["evaluate", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    model, losses, tokens = AutoModelForCausalLM.from_pretrained(folder / "model"), 0.0, 0
    for ids in (tokenizer(text, return_tensors="pt")["input_ids"] for text in texts):
        with torch.inference_mode():
            losses += float(model(ids, labels=ids).loss) * (ids.numel() - 1)
        tokens += ids.numel() - 1
    assert found["evaluation"]["num_sequences"] == 12
    assert found["loss"] == pytest.approx(losses / tokens, rel=1e-5)


def test_a_classifier_that_cannot_find_where_rows_end_is_told(folder, tokenizer, capsys):
    model = tiny_model(task="ForSequenceClassification", num_labels=2, pad_token_id=None)
    model.save_pretrained(folder / "classifier")
    tokenizer.save_pretrained(folder / "classifier")
    rows = [{"text": f"w{3 + row}" + " w9" * (row % 5), "label": row % 2} for row in range(30)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [str(folder / "classifier"), "--eval_file", str(folder / "rows.jsonl"), "--label_column", "label"]
    fails(capsys, ["evaluate", *words], "`LlamaForSequenceClassification` has no `pad_token_id`", "`calibration_batch_size` 1")
    assert main(["evaluate", *words, "--calibration_batch_size", "1"]) == 0


def test_a_model_without_a_head_has_nothing_to_evaluate(folder, capsys):
    config = json.loads((folder / "model" / "config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(folder / "model").model
    model.save_pretrained(folder / "model")
    assert json.loads((folder / "model" / "config.json").read_text())["architectures"] != config["architectures"]
    words = [str(folder / "model"), "--eval_file", str(folder / "text.txt"), "--max_seq_length", "32"]
    fails(capsys, ["evaluate", *words], "a `LlamaModel` has no head", "`architectures`")
