"""Direct ablation: the loss without a unit is the real one, and the agreement of scores with it is counted right."""

from __future__ import annotations

import copy
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ENCODERS, FAMILIES, FFN_ONLY, encoder_batch, random_batch, tiny_encoder, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hypergeom

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments, masked
from hf_spectral_prune.cli.main import main
from hf_spectral_prune.criteria import CRITERIA, Criterion
from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.models.families import unit_groups
from hf_spectral_prune.models.losses import loss_of
from hf_spectral_prune.planning import choose_units
from hf_spectral_prune.planning.damage import SuffixLoss, num_targets
from hf_spectral_prune.studies.ablation import AblationArguments, ablate, table, to_dict
from hf_spectral_prune.studies.ablation.results import Summary, verdict
from hf_spectral_prune.studies.ablation.statistics import (
    agreement,
    chance,
    interval,
    overlap_rows,
    reliability,
    shift,
    spearman,
    spearman_rows,
    standard_error,
)
from hf_spectral_prune.studies.ablation.truth import sample_units
from hf_spectral_prune.surgery import apply_plan


def arguments(folder, **fields) -> AblationArguments:
    plain = {"output_dir": str(folder), "criteria": ["magnitude", "random"], "disable_tqdm": True}
    return AblationArguments(**plain | fields)


def labelled(model, rows: int = 6, seed: int = 0) -> dict[str, torch.Tensor]:
    return encoder_batch(model, rows, seed=seed, padding="right") | {"labels": torch.arange(rows) % 2}


def mean_loss(model, batches) -> float:
    """The loss of a target, by whole forward passes and the loss's own definition."""
    total, count = 0.0, 0
    for batch in batches:
        with torch.no_grad():
            logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits.double()
        if "labels" in batch:
            pairs = [(logits, batch["labels"])]
        else:
            rows = zip(logits, batch["input_ids"], batch["attention_mask"].bool(), strict=True)
            pairs = [(row[mask][:-1], ids[mask][1:]) for row, ids, mask in rows]
        for values, goals in pairs:
            total += torch.nn.functional.cross_entropy(values, goals, reduction="sum").item()
            count += len(goals)
    return total / count


# ---- the truth


CASES = pytest.mark.parametrize(
    ("family", "kind", "consumer"),
    [
        ("llama", "ffn", "model.layers.{}.mlp.down_proj"),
        ("llama", "heads", "model.layers.{}.self_attn.o_proj"),
        ("bert", "ffn", "bert.encoder.layer.{}.output.dense"),
        ("bert", "heads", "bert.encoder.layer.{}.attention.output.dense"),
    ],
    ids=["llama-ffn", "llama-heads", "bert-ffn", "bert-heads"],
)


def case(family: str):
    if family == "bert":
        model = tiny_encoder(task="ForSequenceClassification")
        return model, [labelled(model, seed=seed) for seed in range(2)]
    return tiny_model(), [random_batch(3, 16, seed, padding="right") for seed in range(2)]


@CASES
def test_damage_is_the_loss_of_the_model_without_the_unit(family, kind, consumer, tmp_path):
    model, batches = case(family)
    before = copy.deepcopy(model.state_dict())
    result = ablate(model, arguments(tmp_path, units=[kind], units_per_layer=3, num_layers=3), None, batches)
    clean, felt = mean_loss(model, batches), 0
    for damage in result.damage:
        assert damage.clean == pytest.approx(clean, abs=1e-5)
        assert len(damage.units) == 3
        for unit, found in zip(damage.units, damage.mean, strict=True):
            zeroed = copy.deepcopy(model)
            size = damage.group.channels_per_unit
            with torch.no_grad():
                zeroed.get_submodule(consumer.format(damage.group.layer)).weight[:, unit * size : (unit + 1) * size] = 0
            assert found == pytest.approx(mean_loss(zeroed, batches) - clean, abs=3e-6)
            felt += abs(found) > 1e-4
    assert felt >= 3
    assert [damage.group.layer for damage in result.damage] == [0, 1, 2]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
@CASES
def test_damage_is_that_of_the_cut_model(family, kind, consumer, tmp_path):
    model, batches = case(family)
    (damage,) = ablate(model, arguments(tmp_path, units=[kind], units_per_layer=1, layers=[1]), None, batches).damage
    groups = unit_groups(model)
    scores = {group.key: torch.arange(group.size).double() for group in groups}
    scores[damage.group.key][damage.units] = -1
    sizes = {group.key: group.size - (group.key == damage.group.key) for group in groups}
    plan = choose_units(groups, scores, sizes, num_parameters(model), model_type=model.config.model_type, layout="per_layer")
    cut = apply_plan(copy.deepcopy(model), plan)
    assert num_parameters(cut) == num_parameters(model) - damage.group.parameters_per_unit
    assert damage.mean[0] == pytest.approx(mean_loss(cut, batches) - mean_loss(model, batches), abs=1e-5)


@pytest.mark.parametrize("family", ["mistral-window", *(name for name in (FAMILIES | FFN_ONLY | ENCODERS) if "-" not in name)])
def test_loss_from_a_layer_on_equals_a_whole_pass_bit_for_bit(family):
    if family in ENCODERS:
        model = tiny_encoder(family)
        batches = [labelled(model, seed=seed) for seed in range(2)]
    else:
        model, batches = tiny_model(family), [random_batch(2, 16, seed, padding="left") for seed in range(2)]
    loss = SuffixLoss(model, batches, layers=[0, 2])
    for layer in (0, 2):
        kept = {f"layers.{layer}.ffn": torch.arange(1, 24)}
        with torch.inference_mode(), masked(model, kept):
            whole = [loss_of(model, batch).item() for batch in batches]
        assert loss.sums(layer, kept).tolist() == whole
        assert loss(layer, kept) == pytest.approx(sum(whole) / sum(num_targets(model, batch) for batch in batches))
    assert not any("forward" in vars(module) for module in model.modules())
    assert [sorted(inputs) for inputs in loss.inputs] == [[2], [2]]


def test_targets_of_question_answering_are_its_rows():
    model = tiny_encoder(task="ForQuestionAnswering")
    batch = encoder_batch(model, 4) | {"start_positions": torch.arange(4), "end_positions": torch.arange(4) + 1}
    assert num_targets(model, batch) == 4
    with torch.no_grad():
        assert SuffixLoss(model, [batch]).clean == pytest.approx(model(**batch).loss.item(), abs=1e-6)


def test_text_is_measured_by_sequence_and_labels_by_batch(tmp_path):
    model, batches = case("llama")
    args = {"units": ["ffn"], "units_per_layer": 2, "num_layers": 1}
    (damage,) = ablate(model, arguments(tmp_path / "text", **args), None, batches).damage
    assert damage.targets.tolist() == [10, 15, 15] * 2
    model, batches = case("bert")
    (damage,) = ablate(model, arguments(tmp_path / "labels", **args), None, batches).damage
    assert damage.targets.tolist() == [6, 6]


def test_sample_is_seeded_nested_and_all_where_there_are_no_more():
    group = unit_groups(tiny_model(), ["ffn"])[0]
    assert set(sample_units(group, 5, seed=1)) < set(sample_units(group, 9, seed=1))
    assert sample_units(group, 5, seed=1) != sample_units(group, 5, seed=2)
    assert sample_units(group, 1000, seed=1) == list(range(24))


@pytest.mark.parametrize(
    ("fields", "layers"),
    [({}, [3, 11, 18, 26]), ({"num_layers": 1}, [15]), ({"num_layers": 99}, list(range(30))), ({"layers": [7, 2]}, [2, 7])],
)
def test_layers_are_evenly_spaced_or_those_named(fields, layers):
    assert AblationArguments(**fields).chosen_layers(30) == layers


# ---- the scores


@dataclass(frozen=True)
class Told(Criterion):
    """Scores that a test puts in."""

    sign: float = 1.0
    name = "told"
    values = {}  # noqa: RUF012

    def score(self, data):
        return self.sign * torch.tensor(self.values[data.group.key], dtype=torch.float64)


@pytest.fixture
def told(monkeypatch):
    monkeypatch.setitem(CRITERIA, "told", Told)
    monkeypatch.setattr(Told, "values", {})
    return Told.values


@pytest.mark.slow
def test_the_truth_itself_agrees_wholly_and_its_negation_not_at_all(told, tmp_path):
    model, batches = case("llama")
    options = {"truth": {"criterion": "told"}, "reverse": {"criterion": "told", "sign": -1.0}}
    args = {"units_per_layer": 24, "num_layers": 3, "criteria_args": options}
    first = ablate(model, arguments(tmp_path, units_per_layer=24, num_layers=3), None, batches)
    for damage in first.damage:
        told[damage.group.key] = damage.mean.tolist()
    result = ablate(model, arguments(tmp_path, criteria=["truth", "reverse"], **args), None, batches)
    for found in result.agreement.values():
        assert found["truth"].spearman == pytest.approx(1)
        assert found["truth"].overlap == 1
        assert found["reverse"].spearman == pytest.approx(-1)
        assert found["reverse"].overlap == 0
    for kind in ("ffn", "heads"):
        summary = result.summary(kind, "truth", "spearman")
        assert (summary.mean, summary.std, summary.layers) == (pytest.approx(1), pytest.approx(0, abs=1e-9), 3)
        assert result.pooled(kind, "truth") == pytest.approx(1)
    for damage in first.damage:
        told[damage.group.key] = damage.shift.tolist()
    result = ablate(model, arguments(tmp_path / "shift", criteria=["truth", "reverse"], **args), None, batches)
    for kind in ("ffn", "heads"):
        assert result.summary(kind, "truth", "spearman", "shift").mean == pytest.approx(1)
        assert result.pooled(kind, "truth", "shift") == pytest.approx(1)
        assert result.summary(kind, "truth", "spearman").mean < 0.99


def test_scores_are_those_of_a_pruning_run(batches, tmp_path):
    model = tiny_model()
    names = ["energy", "spectral", "ndi", "taylor", "random"]
    options = {"ndi": {"num_probes": 1, "num_curvature_sequences": 2}}
    args = arguments(tmp_path, criteria=names, criteria_args=options, layers=[1], units_per_layer=6, seed=7)
    result = ablate(model, args, batches, batches[:1])
    assert not result.failed
    for name in names:
        pruning = SpectralPruningArguments(criterion=name, criterion_args=options.get(name), seed=7, disable_tqdm=True)
        scores = SpectralPruner(model, pruning, batches).score()
        for damage in result.damage:
            expected = scores[damage.group.key][damage.units]
            assert result.scores(name, damage) == pytest.approx(expected.numpy(), rel=1e-6)


def test_a_criterion_that_fails_does_not_stop_the_others(told, batches, tmp_path):
    result = ablate(tiny_model(), arguments(tmp_path, criteria=["told", "energy"], units_per_layer=2), batches, batches[:1])
    assert result.failed == {"told": "KeyError: 'layers.0.ffn'"}
    assert result.labels == ["energy"]
    assert "energy" in table(result)


# ---- the statistics


whole_numbers = st.integers(0, 6).map(float)


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_figures_do_not_depend_on_the_order_of_units_or_the_scale_of_scores(data):
    size = data.draw(st.integers(2, 12))
    scores, damage = (np.array(data.draw(st.lists(whole_numbers, min_size=size, max_size=size))) for _ in range(2))
    order = np.array(data.draw(st.permutations(range(size))))
    first = agreement(scores, damage, 0.25, seed=0)
    for other in (agreement(scores[order], damage[order], 0.25, seed=0), agreement(np.exp(scores) - 5, damage, 0.25, seed=0)):
        assert other.spearman == pytest.approx(first.spearman)
        assert other.overlap == pytest.approx(first.overlap)
        assert other.note == first.note
    turned = agreement(-scores, damage, 0.25, seed=0).spearman
    assert (first.spearman is None) == (turned is None)
    assert first.spearman is None or turned == pytest.approx(-first.spearman)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(whole_numbers, whole_numbers), min_size=2, max_size=12))
def test_rows_give_what_scipy_gives(pairs):
    scores, damage = (np.array(side) for side in zip(*pairs, strict=True))
    (row,) = spearman_rows(scores[None], damage[None])
    value = spearman(scores, damage)
    assert np.isnan(row) if value is None else row == pytest.approx(value)


def test_random_scores_agree_no_better_than_chance():
    rng = np.random.default_rng(1)
    found = agreement(rng.random(1500), rng.standard_normal(1500), 0.25, seed=0)
    assert abs(found.spearman) < 0.08
    assert found.overlap == pytest.approx(0.25, abs=0.05)
    low, high = interval(found.spearman_draws)
    assert low < 0 < high


def test_chance_is_what_random_orders_give():
    rng = np.random.default_rng(0)
    damage = rng.standard_normal(64)
    level = chance(damage, 0.25, seed=0)
    scores = rng.random((3000, 64))
    many = np.broadcast_to(damage, scores.shape)
    inside = [edge[0] <= value <= edge[1] for edge in [level.spearman_interval] for value in spearman_rows(scores, many)]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)
    assert level.overlap == 0.25
    assert overlap_rows(scores, many, 16).mean() == pytest.approx(0.25, abs=0.01)
    exact = hypergeom(64, 16, 16).ppf([0.025, 0.975]) / 16
    assert level.overlap_interval == pytest.approx(exact, abs=1 / 16)


def test_interval_holds_the_true_correlation_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    true = 6 / np.pi * np.arcsin(0.6 / 2)  # Spearman's correlation of normal variables with correlation 0.6
    held = 0
    for seed in range(40):
        first, second = rng.standard_normal((2, 64))
        low, high = interval(agreement(first, 0.6 * first + 0.8 * second, 0.25, seed).spearman_draws)
        held += low <= true <= high
    assert 33 <= held <= 40


@pytest.mark.parametrize(
    ("span", "said"),
    [
        (None, "too few units to tell the criteria from chance; `one` comes nearest (rank correlation 0.80)."),
        ([-0.2, 0.9], "no criterion predicts the damage better than chance; `one` comes nearest"),
        ([0.5, 0.9], "`one` predicts the damage best (rank correlation 0.80, 95 % interval 0.50 to 0.90)."),
    ],
)
def test_the_verdict_claims_no_more_than_the_interval(span, said):
    found = {"one": Summary(0.8, None, 0.8, 0.8, span, 1), "two": Summary(0.1, None, 0.1, 0.1, [0.0, 0.2], 1)}
    result = SimpleNamespace(kinds=["heads"], labels=list(found), summary=lambda kind, label, figure: found[label])
    assert said in verdict(result)


def test_ties_share_the_places_that_are_left():
    scores, damage = np.array([[0.0, 0.0, 0.0, 1.0]]), np.array([[0.0, 1.0, 2.0, 3.0]])
    assert overlap_rows(scores, damage, 2)[0] == pytest.approx(2 / 3)
    assert overlap_rows(np.zeros((1, 4)), damage, 2)[0] == pytest.approx(0.5)  # equal scores are no better than chance


@pytest.mark.parametrize(
    ("scores", "damage", "note"),
    [([1.0] * 6, range(6), "all scores are equal"), (range(6), [0.0] * 6, "all damages are equal"), ([1.0], [2.0], "one unit")],
)
def test_a_correlation_that_is_undefined_is_null_and_said(scores, damage, note):
    found = agreement(np.array(scores, dtype=float), np.array(damage, dtype=float), 0.25, seed=0)
    assert found.spearman is None
    assert interval(found.spearman_draws) is None
    assert note in found.note


def test_standard_error_is_that_of_a_mean_over_batches():
    sums = np.random.default_rng(0).standard_normal((3, 20))
    assert standard_error(sums, np.full(20, 5.0)) == pytest.approx(sums.std(axis=1, ddof=1) / np.sqrt(20) / 5)
    assert standard_error(sums[:, :1], np.ones(1)) is None


def test_reliability_predicts_the_agreement_with_a_second_measurement():
    rng = np.random.default_rng(0)
    signal_, targets = rng.standard_normal((200, 1)), np.ones(16)
    first, second = (signal_ + 3 * rng.standard_normal((200, 16)) for _ in range(2))
    expected = spearman(first.mean(axis=1), second.mean(axis=1))
    assert reliability(first, targets, seed=0) == pytest.approx(expected, abs=0.1)
    assert reliability(rng.standard_normal((200, 16)), targets, seed=0) < 0.2
    assert reliability(signal_ + np.zeros(16), targets, seed=0) == pytest.approx(1)
    assert reliability(first[:, :1], targets[:1], seed=0) is None


def test_the_size_of_the_change_does_not_let_texts_cancel_and_predicts_itself():
    targets = np.array([1.0, 3.0])
    sums = np.array([[2.0, -6.0], [0.0, 3.0], [0.0, 0.0]])  # per target 2, -2; 0, 1; 0, 0
    assert shift(sums, targets) == pytest.approx([2, np.sqrt(3 / 4), 0])
    assert shift(-sums, targets) == pytest.approx(shift(sums, targets))
    assert shift(sums[:, :1], targets[:1]) == pytest.approx(np.abs(sums[:, 0]))
    rng = np.random.default_rng(0)
    sizes, many = np.exp(rng.standard_normal((200, 1))), np.ones(16)
    first, second = (sizes * rng.standard_normal((200, 16)) for _ in range(2))
    expected = spearman(shift(first, many), shift(second, many))
    assert reliability(first, many, 0, shift) == pytest.approx(expected, abs=0.1)
    assert reliability(first, many, 0) < 0.3  # the signs are noise


# ---- the folder and the command


def flags(folder, **more) -> list[str]:
    values = {"model_name_or_path": folder / "model", "calibration_file": folder / "text.txt", "output_dir": folder / "out"}
    values |= {"max_seq_length": 32, "num_calibration_samples": 8, "num_eval_samples": 3, "units_per_layer": 6}
    values |= {"criteria": "spectral energy random"}
    words = ["ablate", "--disable_tqdm"]
    for name, value in (values | more).items():
        if value is not None:
            words += [f"--{name}", *(value.split() if name in ("criteria", "layers", "units") else [str(value)])]
    return words


def read(folder):
    return json.loads((folder / "out" / "ablation.json").read_text(), parse_constant=lambda word: pytest.fail(word))


def test_command_writes_what_it_prints(folder, capsys):
    pytest.importorskip("matplotlib")
    assert main(flags(folder, top_share="0.5")) == 0
    out = capsys.readouterr().out
    assert "6 of 24 per layer" in out
    assert "4 of 4 per layer" in out
    result = read(folder)
    assert (folder / "out" / "ablation.png").read_bytes().startswith(b"\x89PNG")
    assert result["protocol"]["evaluation"]["num_sequences"] == 3
    assert result["versions"]["torch"] == torch.__version__
    for group in result["groups"].values():
        damage, added = np.array(group["damage"]), np.array(group["loss_added_by_batch"])
        assert damage == pytest.approx(added.sum(axis=1) / sum(group["targets"]))
        for label, found in group["agreement"].items():
            scores = np.array(group["scores"][label])
            assert found["spearman"] == pytest.approx(spearman(scores, damage))
            told = group["shift_agreement"][label]["spearman"]
            assert told == pytest.approx(spearman(scores, shift(added, np.array(group["targets"]))))
            assert found["overlap"] == overlap_rows(scores[None], damage[None], max(1, round(0.5 * len(damage))))[0]
    spectral = [group["agreement"]["spectral"]["spearman"] for key, group in result["groups"].items() if key.endswith("ffn")]
    summary = result["summary"]["ffn"]["spectral"]["spearman"]
    assert (summary["mean"], summary["std"]) == (pytest.approx(np.mean(spectral)), pytest.approx(np.std(spectral, ddof=1)))
    assert f"{summary['mean']:.2f}" in next(line for line in out.splitlines() if line.startswith("| spectral"))


@pytest.mark.slow
def test_more_criteria_and_units_are_added_to_what_is_there(folder, monkeypatch):
    assert main(flags(folder, criteria="energy")) == 0
    first = read(folder)
    asked: list[int] = []
    sums = SuffixLoss.sums
    monkeypatch.setattr(SuffixLoss, "sums", lambda self, layer, kept: asked.append(layer) or sums(self, layer, kept))
    assert main(flags(folder, criteria="energy magnitude")) == 0
    assert asked == []
    assert main(flags(folder, criteria="energy magnitude", units_per_layer=8)) == 0
    assert len(asked) == 3 * 2
    second = read(folder)
    for key, group in first["groups"].items():
        known = dict(zip(second["groups"][key]["units"], second["groups"][key]["damage"], strict=True))
        assert [known[unit] for unit in group["units"]] == group["damage"]


@pytest.mark.slow
def test_a_killed_run_continues(folder):
    more = {"units_per_layer": 24, "num_eval_samples": 8, "units": "ffn", "criteria": "magnitude"}
    words = flags(folder, **more)
    truth = folder / "out" / "truth"
    process = subprocess.Popen([sys.executable, "-m", "hf_spectral_prune.cli.main", *words], stdout=subprocess.DEVNULL)
    while not list(truth.glob("layers*")):
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "out" / "ablation.json").exists()
    assert not (truth / "layers.2.ffn.json").exists()
    # A mark in what was measured shows that it is not measured again.
    file = next(truth.glob("layers*"))
    record = json.loads(file.read_text())
    unit = next(iter(record["sums"]))
    record["sums"][unit] = [1e6] * 8
    file.write_text(json.dumps(record))
    assert main(words) == 0
    continued = read(folder)["groups"]
    assert continued[file.stem]["damage"][continued[file.stem]["units"].index(int(unit))] > 1e4
    assert main(flags(folder, **more, output_dir=folder / "whole")) == 0
    whole = json.loads((folder / "whole" / "ablation.json").read_text())["groups"]
    for key, group in whole.items():
        for index, damage in enumerate(group["damage"]):
            marked = (key, str(group["units"][index])) == (file.stem, unit)
            assert marked or continued[key]["damage"][index] == pytest.approx(damage, abs=1e-6)


@pytest.mark.slow
def test_a_damaged_file_is_measured_again(folder, capsys):
    assert main(flags(folder, criteria="energy")) == 0
    first = read(folder)
    (folder / "out" / "truth" / "layers.1.ffn.json").write_text('{"sums": {"1"')
    next((folder / "out" / "scores").iterdir()).write_text("")
    assert main(flags(folder, criteria="energy")) == 0
    assert read(folder)["groups"]["layers.1.ffn"]["damage"] == first["groups"]["layers.1.ffn"]["damage"]


def test_constant_scores_are_null_in_the_file(told, batches, tmp_path):
    model = tiny_model()
    told.update({group.key: [1.0] * group.size for group in unit_groups(model)})
    result = ablate(model, arguments(tmp_path, criteria=["told", "energy"], units_per_layer=6), batches, batches[:1])
    written = json.loads((tmp_path / "ablation.json").read_text())
    assert written["groups"]["layers.0.ffn"]["agreement"]["told"]["spearman"] is None
    assert written["summary"]["ffn"]["told"]["spearman"] | {"layers": 0} == written["summary"]["ffn"]["told"]["spearman"]
    assert to_dict(result)["summary"] == written["summary"]
    assert "`told` in `layers.0.ffn`: all scores are equal" in table(result)


# ---- bad input


def fails(capsys, words: list[str], *messages: str) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.strip().splitlines() if line.startswith("cria")]
    assert len(lines) == 1, captured.err
    for message in messages:
        assert message in lines[0]


@pytest.mark.parametrize(
    ("more", "messages"),
    [
        ({"layers": "0 3"}, ["`layers` has 3", "0 to 2"]),
        ({"layers": "-1"}, ["`layers` has -1", "0 to 2"]),
        ({"layers": "1 1"}, ["`layers`", "each once"]),
        ({"layers": "first"}, ["layers"]),
        ({"num_layers": "0"}, ["`num_layers` is 0"]),
        ({"units_per_layer": "0"}, ["`units_per_layer` is 0"]),
        ({"top_share": "1"}, ["`top_share`", "between 0 and 1"]),
        ({"units": "neurons"}, ["`neurons`", "`ffn`"]),
        ({"units": "channels"}, ["`channels`"]),
        ({"criteria": "spectrum"}, ["`spectral`"]),
        ({"criteria": "energy energy"}, ["`criteria`", "each once"]),
        ({"criteria_args": "{x"}, ["criteria_args", "JSON"]),
        ({"criteria_args": '{"energi": {}}'}, ["`energi`", "`energy`"]),
        ({"criteria_args": '{"energy": {"power": 2}}'}, ["`power`"]),
        ({"criteria_args": "[1]"}, ["criteria_args"]),
        ({"num_eval_samples": "0"}, ["num_eval_samples"]),
        ({"output_dir": None}, ["--output_dir"]),
        ({"calibration_file": None}, ["calibration_file"]),
        ({"resume_from_checkpoint": "latest"}, ["--resume_from_checkpoint", "`cria prune` reads it"]),
        ({"num_ablations": "3"}, ["--num_ablations"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_input_is_one_line_and_nothing_is_written(folder, capsys, more, messages):
    fails(capsys, flags(folder, **more), *messages)
    assert not (folder / "out").exists()


def test_layers_of_a_recipe_must_not_be_empty(folder, capsys):
    (folder / "recipe.yaml").write_text("layers: []\n")
    words = flags(folder)
    fails(capsys, [words[0], str(folder / "recipe.yaml"), *words[1:]], "`layers` is []", "evenly spaced")


def test_criteria_without_data_need_no_calibration_text(folder, capsys):
    text = folder / "text.txt"
    fails(capsys, flags(folder, calibration_file=None, eval_file=text), "`spectral` needs it")
    assert main(flags(folder, calibration_file=None, eval_file=text, criteria="magnitude random")) == 0
    assert read(folder)["protocol"]["calibration"] is None


def test_folders_of_something_else_are_refused(folder, capsys):
    out = folder / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    fails(capsys, flags(folder), "something else", "mine.txt")
    (out / "protocol.json").write_text('{"model": {}}')  # that of a comparison
    fails(capsys, flags(folder, overwrite_output_dir=True), "not the protocol of an ablation")
    assert (out / "mine.txt").read_text() == "mine"


@pytest.mark.slow
def test_an_ablation_of_other_text_is_not_mixed_with_this_one(folder, capsys):
    assert main(flags(folder, criteria="energy")) == 0
    fails(capsys, flags(folder, criteria="energy", num_eval_samples=4), "other held-out data", "overwrite_output_dir")
    assert main(flags(folder, criteria="energy", num_eval_samples=4, overwrite_output_dir=True)) == 0
    assert len(read(folder)["groups"]["layers.0.ffn"]["targets"]) == 4


def unusable(what: str):
    """A model, its criteria and its data, of which one cannot be used."""
    model, batches = case("bert")
    if what == "no labels":
        return model, "magnitude", [{name: value for name, value in batch.items() if name != "labels"} for batch in batches]
    if what == "no task head":
        return tiny_encoder(task="Model"), "magnitude", batches
    if what == "inference mode":
        with torch.inference_mode():
            return tiny_model(), "taylor", [random_batch()]
    if what == "quantised":
        model = tiny_model()
        layer = model.model.layers[0].mlp.down_proj
        layer.weight = torch.nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
        return model, "taylor", [random_batch()]
    if what == "unlabelled calibration":
        return model, "fisher", batches
    return tiny_model(), "magnitude", [random_batch(length=1)]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no labels", "held-out batches have no `labels`"),
        ("no task head", "no task head"),
        ("inference mode", "made under `torch.inference_mode`"),
        ("quantised", "Load the model without quantisation"),
        ("unlabelled calibration", "no `labels`"),
        ("one token", "at least two tokens"),
    ],
)
def test_what_cannot_work_is_told_before_any_work(what, message, tmp_path):
    model, criterion, batches = unusable(what)
    bare = [{name: value for name, value in batch.items() if name != "labels"} for batch in batches]
    with pytest.raises(ValueError, match=message) as raised:
        ablate(model, arguments(tmp_path / "out", criteria=[criterion]), bare, batches)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_missing_data_is_told(tmp_path):
    with pytest.raises(ValueError, match="Pass `eval_dataset`"):
        ablate(tiny_model(), arguments(tmp_path))
    with pytest.raises(ValueError, match="the criterion `energy` needs it"):
        ablate(tiny_model(), arguments(tmp_path, criteria=["energy"]), None, [random_batch()])
