"""From examples to a saved folder: planted neurons are found, their removal equals their zeroing, bad input is told first."""

from __future__ import annotations

import copy
import json
import re

import pytest
import torch
from conftest import logits, random_batch, tiny_encoder, tiny_model
from planted import LAYER, NEURONS, plant, questions, sound_model
from products import only
from transformers import TrainerCallback

from hf_spectral_prune import DetrimentalArguments, DetrimentalNeuronPruner, Example
from hf_spectral_prune.cli.main import main
from hf_spectral_prune.studies.detrimental.report import summary
from hf_spectral_prune.studies.detrimental.scoring import evaluate, tokenise
from hf_spectral_prune.studies.detrimental.search import GridPoint, best_point, grid_search, kept_neurons
from hf_spectral_prune.surgery.plan import PruningPlan

SHARES = [1 / 6, 1 / 3, 1 / 2]


def arguments(**fields) -> DetrimentalArguments:
    return DetrimentalArguments(**{"shares": SHARES, "disable_tqdm": True} | fields)


@pytest.fixture(scope="module")
def planted():
    """A spoilt model, its examples, and the sound model."""
    sound = sound_model()
    asked = questions(sound)
    return plant(copy.deepcopy(sound)), asked, sound


@pytest.mark.parametrize("family", only(["llama"], ["llama", "mistral", "qwen2", "qwen3"]))
def test_planted_neurons_are_found_and_accuracy_rises(family, tokenizer):
    sound = sound_model(family)
    asked = questions(sound)
    pruner = DetrimentalNeuronPruner(plant(copy.deepcopy(sound)), arguments(), asked[:10], asked[10:], tokenizer)
    output = pruner.prune()
    found = output.report["detrimental"]
    assert (found["layer"], found["removed"]) == (LAYER, 4)
    assert set(range(24)) - set(output.plan.kept[f"layers.{LAYER}.ffn"]) == set(NEURONS)
    assert found["adaptation"]["before"]["accuracy"] == 0.5 and found["adaptation"]["after"]["accuracy"] == 1.0
    held_out = found["held_out"]
    assert held_out["before"]["accuracy"] == 0.5 and held_out["after"]["accuracy"] == 1.0
    assert output.report.size_on_disk_before == sum(value.numel() * 4 for value in sound.parameters())
    assert "adaptation examples: 50.0 % -> 100.0 %" in summary(output.report) and "50.0 % [" in summary(output.report)
    assert (held_out["gained"], held_out["lost"]) == (25, 0) and held_out["p_value"] == pytest.approx(2 * 0.5**25)
    assert held_out["before"]["low"] < 0.5 < held_out["before"]["high"] and held_out["after"]["low"] > 0.9
    assert output.metrics["parameters_before"] - output.metrics["parameters_after"] == 4 * 3 * 32
    assert sum(parameter.numel() for parameter in output.model.parameters()) == output.metrics["parameters_after"]
    torch.testing.assert_close(logits(output.model, random_batch()), logits(sound, random_batch()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "family",
    only(
        ["llama"],
        ["llama", "llama-biases", "llama-tied", "mistral-window", "qwen2-tied", "qwen3-biases", "smollm3", "gemma3"],
    ),
)
def test_removed_neurons_equal_zeroed_gate_rows(family, tokenizer):
    model = tiny_model(family)
    dense = copy.deepcopy(model)
    asked = questions(dense, 40)
    assert evaluate(dense, tokenise(asked, tokenizer), progress=False).accuracy == 1.0
    wrong = [Example(example.prompt, example.choices, 1 - example.label) for example in asked]  # so that something is removed
    output = DetrimentalNeuronPruner(model, arguments(shares=[0.25, 0.75]), wrong, None, tokenizer).prune()
    layer = output.report["detrimental"]["layer"]
    assert layer is not None and output.report["detrimental"]["held_out"] is None
    removed = sorted(set(range(24)) - set(output.plan.kept[f"layers.{layer}.ffn"]))
    with torch.no_grad():
        for value in dense.model.layers[layer].mlp.gate_proj.parameters():
            value[removed] = 0
    for batch in (random_batch(), random_batch(padding="left"), random_batch(padding="right")):
        real = batch["attention_mask"].bool()
        torch.testing.assert_close(logits(output.model, batch)[real], logits(dense, batch)[real], rtol=1e-5, atol=1e-5)
    assert type(output.model).__name__.startswith("Cria")
    assert [entry.intermediate_size for entry in output.model.config.per_layer_config][layer] == 24 - len(removed)


def test_grid_points_equal_whole_runs_with_zeroed_rows(planted, tokenizer):
    model, asked, _ = planted
    adaptation = tokenise(asked[:8], tokenizer, batch_tokens=20)
    attributions = {layer: torch.randn(24, generator=torch.Generator().manual_seed(layer)).double() for layer in (0, 2)}
    points = grid_search(model, attributions, adaptation, SHARES, progress=False)
    assert [(point.layer, point.removed) for point in points] == [(None, 0), (0, 4), (0, 8), (0, 12), (2, 4), (2, 8), (2, 12)]
    for point in points:
        zeroed = copy.deepcopy(model)
        if point.layer is not None:
            highest = attributions[point.layer].argsort(descending=True)[: point.removed]
            with torch.no_grad():
                zeroed.model.layers[point.layer].mlp.gate_proj.weight[highest] = 0
        whole = evaluate(zeroed, adaptation, progress=False)
        assert point.accuracy == whole.accuracy
        assert point.label_log_probability == pytest.approx(whole.label_log_probability, abs=1e-5)


def test_ties_go_to_the_smaller_share_then_the_surer_then_the_lower_layer():
    whole = GridPoint(None, 0.0, 0, 0.7, -1.0)
    points = [GridPoint(1, 0.2, 4, 0.8, -0.5), GridPoint(1, 0.1, 2, 0.8, -0.9), GridPoint(2, 0.1, 2, 0.8, -0.6)]
    assert best_point([whole, *points]) is points[2]
    assert best_point([whole, *points, GridPoint(0, 0.1, 2, 0.8, -0.6)]).layer == 0
    assert best_point([whole, GridPoint(0, 0.1, 2, 0.7, 0.0)]) is whole
    attribution = torch.tensor([1.0, 3.0, 3.0, 2.0])
    assert kept_neurons(attribution, 1).tolist() == [0, 1, 3] and kept_neurons(attribution, 3).tolist() == [0]


def test_nothing_is_removed_where_nothing_helps(planted, tokenizer, tmp_path):
    _, asked, sound = planted
    model = copy.deepcopy(sound)
    args = arguments(output_dir=str(tmp_path / "out"), self_check=False)
    pruner = DetrimentalNeuronPruner(model, args, asked[:10], asked[10:], tokenizer)
    output = pruner.prune()
    assert output.report["detrimental"]["layer"] is None and output.plan.reduction == 0
    assert "Nothing is removed" in output.report["notes"][0]
    assert type(output.model).__name__ == "LlamaForCausalLM"
    pruner.save_model()
    assert "Nothing was removed" in (tmp_path / "out" / "README.md").read_text()


def test_a_width_that_is_asked_for_is_kept(planted, tokenizer):
    model, asked, _ = planted
    args = arguments(round_to=8, shares=[0.4])  # 10 of 24 would leave 14
    output = DetrimentalNeuronPruner(copy.deepcopy(model), args, asked[:10], None, tokenizer).prune()
    kept = output.plan.kept[f"layers.{LAYER}.ffn"]
    assert len(kept) == 16 and not set(kept) & set(NEURONS) and not output.report["notes"]


def test_a_saved_folder_loads_in_a_fresh_process(planted, tokenizer, tmp_path):
    model, asked, _ = planted
    args = arguments(output_dir=str(tmp_path / "out"))
    pruner = DetrimentalNeuronPruner(copy.deepcopy(model), args, asked[:10], asked[10:], tokenizer)
    pruner.prune()
    pruner.save_model()
    report = json.loads((tmp_path / "out" / "pruning_report.json").read_text())
    assert {way: check["max_abs_diff"] for way, check in report["self_check"].items()} == {"remote_code": 0, "with_package": 0}
    plan = PruningPlan.load(tmp_path / "out" / "pruning_plan.json")
    assert plan.criterion == "detrimental" and len(plan.kept[f"layers.{LAYER}.ffn"]) == 20 and plan.layout == "per_layer"
    assert len(report["detrimental"]["grid"]) == 1 + 3 * 3 and report["evaluation"]["num_sequences"] == 50
    assert all(entry["gap"] < 0.01 for entry in report["detrimental"]["completeness"].values())
    card = (tmp_path / "out" / "README.md").read_text()
    assert "4 FFN neurons (17 %) of layer 1 were removed" in card and "2507.09185" in card


@pytest.mark.slow
def test_a_pruned_model_is_pruned_again(planted, tokenizer):
    """The second time on a model whose layers differ; examples with turned labels make it remove something."""
    model, asked, _ = planted
    first = DetrimentalNeuronPruner(copy.deepcopy(model), arguments(), asked[:10], None, tokenizer).prune()
    turned = [Example(example.prompt, example.choices, 1 - example.label) for example in asked]
    again = DetrimentalNeuronPruner(first.model, arguments(shares=[0.25, 0.75]), turned, None, tokenizer).prune()
    layer = again.report["detrimental"]["layer"]
    assert layer is not None and again.plan.sizes[f"layers.{LAYER}.ffn"] == 20
    widths = [entry.intermediate_size for entry in again.model.config.per_layer_config]
    assert widths == [len(again.plan.kept[f"layers.{index}.ffn"]) for index in range(3)]
    assert again.report["reduction"] > 0 and bool(torch.isfinite(logits(again.model, random_batch())).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_and_says_what_it_misses(dtype, planted, tokenizer):
    model, asked, _ = planted
    args = arguments(max_steps=20, completeness_tolerance=1e-9)
    output = DetrimentalNeuronPruner(copy.deepcopy(model).to(dtype), args, asked[:10], None, tokenizer).prune()
    assert output.report["detrimental"]["layer"] == LAYER and output.model.dtype == dtype
    assert any("miss completeness" in note and "float32" in note for note in output.report["notes"])


@pytest.mark.parametrize("weights", ["up_proj", "down_proj"])
def test_planted_neurons_are_found_by_other_weights_and_on_wrong_answers_alone(weights, planted, tokenizer):
    model, asked, _ = planted
    args = arguments(weights=weights, attribute_on="wrong")
    output = DetrimentalNeuronPruner(copy.deepcopy(model), args, asked[:10], None, tokenizer).prune()
    found = output.report["detrimental"]
    assert set(range(24)) - set(output.plan.kept[f"layers.{LAYER}.ffn"]) == set(NEURONS)
    assert found["num_attributed"] == 5 and found["adaptation"]["num_examples"] == 10 and found["weights"] == weights


def test_where_no_answer_is_wrong_attribution_is_on_all_and_says_so(planted, tokenizer):
    _, asked, sound = planted
    args = arguments(attribute_on="wrong", layers=[1], shares=[0.25])
    output = DetrimentalNeuronPruner(copy.deepcopy(sound), args, asked[:10], None, tokenizer).prune()
    assert output.report["detrimental"]["num_attributed"] == 10
    assert any("answers all 10 adaptation examples rightly" in note for note in output.report["notes"])


class Recorder(TrainerCallback):
    def __init__(self):
        self.events, self.logs = [], []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.events.append("begin")
        assert model is not None and state.max_steps == 1

    def on_step_end(self, args, state, control, **kwargs):
        self.events.append(f"step {state.global_step}")

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.events.append(f"evaluate {sorted(metrics)}")

    def on_train_end(self, args, state, control, **kwargs):
        self.events.append("end")

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(logs)


def test_callbacks_log_evaluate_card_and_push_are_those_of_the_other_pruner(planted, tokenizer, tmp_path, monkeypatch):
    model, asked, _ = planted
    pushed = []
    monkeypatch.setattr("hf_spectral_prune.studies.detrimental.pruner.check_push", lambda model, args: pushed.append("checked"))
    monkeypatch.setattr("hf_spectral_prune.publishing.hub.push_folder", lambda folder, repo, *more: pushed.append((folder, repo)))
    recorder = Recorder()
    args = arguments(
        output_dir=str(tmp_path / "out"), self_check=False, push_to_hub=True, hub_model_id="me/cria", hub_token="hf_secret"
    )
    pruner = DetrimentalNeuronPruner(copy.deepcopy(model), args, asked[:10], asked[10:], tokenizer, [recorder])
    assert pushed == ["checked"]
    assert pruner.evaluate() == {"eval_accuracy": 0.5}
    output = pruner.train()
    assert pruner.evaluate(asked[:4], metric_key_prefix="other") == {"other_accuracy": 1.0}
    assert recorder.events == ["evaluate ['eval_accuracy']", "begin", "step 1", "end", "evaluate ['other_accuracy']"]
    names = ("eval_accuracy", "before_accuracy", "after_accuracy", "other_accuracy")
    assert [set(entry) for entry in recorder.logs] == [{name} for name in names]
    assert [entry[name] for entry, name in zip(pruner.state.log_history, names, strict=True)] == [0.5, 0.5, 1.0, 1.0]
    pruner.save_model()
    assert pushed[1:] == [(tmp_path / "out", "me/cria")]
    card = pruner.create_model_card(tags=["mine"]).read_text()
    assert "- mine" in card and "# me/cria" in card
    assert "hf_secret" not in json.dumps(output.report.arguments)
    with pytest.raises(ValueError, match="Use `evaluate"):
        pruner.predict(asked)


# ---- what cannot work, told before any work


def quantised():
    model = tiny_model()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().to(torch.int8), requires_grad=False)
    return model


def made_in_inference_mode():
    with torch.inference_mode():
        return tiny_model()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: tiny_encoder("bert"), "`BertForSequenceClassification` has no gated FFN"),
        (lambda: tiny_encoder("modernbert", task="ForMaskedLM"), "`llama`, `mistral`, `qwen2`, `qwen3`"),
        (lambda: tiny_model(task="ForSequenceClassification"), "`LlamaForSequenceClassification`"),
        (lambda: tiny_model(hidden_act="sigmoid"), "The activation `Sigmoid` is not zero at zero"),
        (quantised, "`lm_head.weight` is quantised (torch.int8)"),
        (made_in_inference_mode, "made under `torch.inference_mode`"),
    ],
)
def test_a_model_that_cannot_work_is_told(make, words, planted, tokenizer):
    with pytest.raises(ValueError, match=re.escape(words)) as raised:
        DetrimentalNeuronPruner(make(), arguments(), planted[1][:10], None, tokenizer)
    assert "\n" not in str(raised.value) and "energy" not in str(raised.value)


def test_inference_mode_around_the_run_is_told(planted, tokenizer):
    with torch.inference_mode(), pytest.raises(ValueError, match=r"`torch.inference_mode` is on"):
        DetrimentalNeuronPruner(tiny_model(), arguments(), planted[1][:10], None, tokenizer)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"shares": [0.5, 0.99]}, "would zero the whole layer 0 (24 neurons)"),
        ({"shares": [0.5, 0.01]}, "less than a whole step of `round_to` (1)"),
        ({"shares": [0.1], "round_to": 8}, "less than a whole step of `round_to` (8)"),
        ({"layers": [0, 3]}, "layer 3, but the model has the layers 0 to 2"),
        ({"layers": [-1]}, "layer -1"),
    ],
)
def test_a_grid_that_cannot_work_is_told(fields, words, planted, tokenizer):
    with pytest.raises(ValueError, match=re.escape(words)) as raised:
        DetrimentalNeuronPruner(tiny_model(), arguments(**fields), planted[1][:10], None, tokenizer)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"shares": []}, "`shares`"),
        ({"shares": [0.5, 1.0]}, "a whole layer cannot be removed"),
        ({"shares": [0.0]}, "`shares`"),
        ({"shares": [0.1, 0.1]}, "each share once"),
        ({"layers": []}, "`layers`"),
        ({"layers": [1, 1]}, "each layer once"),
        ({"num_steps": 0}, "`num_steps`"),
        ({"max_steps": 3}, "`max_steps`"),
        ({"completeness_tolerance": 0.0}, "`completeness_tolerance`"),
        ({"normalisation": "max"}, "choose from `sum`, `mean`"),
        ({"weights": "k_proj"}, "choose from `gate_proj`, `up_proj`, `down_proj`"),
        ({"attribute_on": "right"}, "choose from `all`, `wrong`"),
        ({"push_to_hub": True}, "`hub_model_id` is not"),
        ({"round_to": 0}, "`round_to`"),
        ({"batch_tokens": 0}, "`batch_tokens`"),
    ],
)
def test_arguments_that_cannot_work_are_told(fields, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        arguments(**fields)


def test_examples_that_cannot_work_are_told(planted, tokenizer, tmp_path):
    _, asked, _ = planted
    rows = [{"prompt": "w3", "choices": ["w4", "w5"], "label": 1}]
    with pytest.raises(ValueError, match="2 of the held-out examples are adaptation examples too"):
        DetrimentalNeuronPruner(tiny_model(), arguments(), asked[:10], asked[8:], tokenizer)
    with pytest.raises(ValueError, match="the list of adaptation examples is empty"):
        DetrimentalNeuronPruner(tiny_model(), arguments(), [], asked, tokenizer)
    with pytest.raises(ValueError, match="held-out examples, row 1 has a choice list of 1"):
        DetrimentalNeuronPruner(tiny_model(), arguments(), rows, [{**rows[0], "choices": ["w4"]}], tokenizer)
    with pytest.raises(ValueError, match="row 2 is a Example"):
        DetrimentalNeuronPruner(tiny_model(), arguments(), [*rows, asked[0]], None, tokenizer)
    with pytest.raises(ValueError, match="`processing_class` is missing"):
        DetrimentalNeuronPruner(tiny_model(), arguments(), rows)
    long = [{**rows[0], "prompt": " ".join(["w3"] * 200)}]
    with pytest.raises(ValueError, match="row 1 has 201 tokens, but the model takes at most 128"):
        DetrimentalNeuronPruner(tiny_model(), arguments(), long, None, tokenizer)
    pruner = DetrimentalNeuronPruner(tiny_model(), arguments(), rows, None, tokenizer)
    with pytest.raises(ValueError, match="Set `output_dir`"):
        pruner.save_model()


# ---- the command


@pytest.fixture
def folder(planted, tokenizer, tmp_path):
    """The spoilt model with its tokenizer, and its examples as jsonl."""
    model, asked, _ = planted
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"prompt": e.prompt, "choices": e.choices, "label": e.label} for e in asked]
    (tmp_path / "asked.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return tmp_path


def flags(folder, **more) -> list[str]:
    values = {"model_name_or_path": folder / "model", "task_file": folder / "asked.jsonl", "output_dir": folder / "out"}
    values |= {"device": "cpu", "shares": "0.17 0.34", "num_adaptation_examples": 12} | more
    words = ["detrimental", "--disable_tqdm"]
    for name, value in values.items():
        if value is not None:
            words += [f"--{name}", *str(value).split()]
    return words


def test_the_command_goes_from_a_file_to_a_folder(folder, capsys):
    assert main(flags(folder, self_check=False)) == 0
    out = capsys.readouterr().out
    assert "Removed 4 neurons (17 %) of layer 1" in out and "McNemar p =" in out
    report = json.loads((folder / "out" / "pruning_report.json").read_text())
    assert report["calibration"]["num_sequences"] == 12 and report["evaluation"]["num_sequences"] == 48
    assert report["metrics_after"]["after_accuracy"] == 1.0 and report["detrimental"]["held_out"]["before"]["accuracy"] == 0.5


def test_the_command_reads_recipes_and_a_held_out_file_without_its_adaptation_examples(folder, capsys):
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"held_out_file: {folder / 'asked.jsonl'}\nlayers: [1, 2]\nseed: 3\nnum_held_out_examples: 30\nself_check: false\n"
    )
    assert main([*flags(folder, num_adaptation_examples=20), str(recipe)]) == 0
    report = json.loads((folder / "out" / "pruning_report.json").read_text())
    assert report["evaluation"]["num_sequences"] == 30 and set(report["detrimental"]["completeness"]) == {"1", "2"}
    assert main([*flags(folder, num_held_out_examples=0, overwrite_output_dir=True, self_check=False)]) == 0
    last = capsys.readouterr().out.rpartition("adaptation examples")[2]
    assert "held-out" not in last.partition("Saved")[0]


def test_the_command_reads_the_splits_of_a_data_set(folder, capsys):
    rows = (folder / "asked.jsonl").read_text().splitlines(keepends=True)
    (folder / "data").mkdir()
    for name, part in (("train", rows[:30]), ("test", rows[30:])):
        (folder / "data" / f"{name}.jsonl").write_text("".join(part))
    named = {"task_file": None, "dataset_name": folder / "data", "eval_split": "test", "draw": "random", "self_check": False}
    assert main(flags(folder, **named)) == 0
    assert "Removed 4 neurons (17 %) of layer 1" in capsys.readouterr().out
    report = json.loads((folder / "out" / "pruning_report.json").read_text())
    assert report["calibration"]["draw"] == "random" and report["calibration"]["source"].endswith("data:train")
    assert report["evaluation"]["num_sequences"] == 30 and report["evaluation"]["source"].endswith("data:test")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"task_file": None}, "Set `--task_file` or `--dataset_name`"),
        ({"dataset_name": "some/data"}, "Both `task_file` and `dataset_name`"),
        ({"eval_split": "test"}, "`eval_split` is a split of `dataset_name`"),
        ({"draw": "even"}, "Choose from `balanced`, `random`"),
        ({"task_file": "absent.jsonl"}, "`absent.jsonl` is no file"),
        ({"output_dir": None}, "Set `--output_dir`"),
        ({"task": "bolq"}, "Did you mean `boolq`"),
        ({"task": "sst2"}, "asked.jsonl, line 1 has no `sentence`"),
        ({"shares": "0.5 1.5"}, "`shares`"),
        ({"shares": "0.5 0.98"}, "would zero the whole layer"),
        ({"num_adaptation_examples": 61}, "61 examples are asked for, but there are only 60"),
        ({"num_adaptation_examples": 60}, "no example left to measure accuracy on"),
        ({"num_adaptation_examples": 0}, "at least 1"),
        ({"num_held_out_examples": -1}, "must not be negative"),
        ({"model_name_or_path": None}, "model_name_or_path"),
        ({"layer": 3}, "--layers"),
        ({"calibration_file": "x.txt"}, "no flag of `cria detrimental`"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(folder, capsys, more, words):
    assert main(flags(folder, **more)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cria")]
    assert words in line
    assert not (folder / "out").exists()


def test_a_model_of_another_family_is_told_by_the_command(folder, capsys, tokenizer):
    tiny_encoder("bert").save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    assert main(flags(folder, model_name_or_path=folder / "bert")) == 2
    assert "`BertForSequenceClassification` has no gated FFN" in capsys.readouterr().err
