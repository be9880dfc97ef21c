"""`cria compare`: cells equal plain runs and each other's size, survive a kill and a failure, and their files can be read."""

from __future__ import annotations

import copy
import csv
import gzip
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import VOCABULARY, encoder_batch, random_batch, tiny_encoder, tiny_model
from datasets import ClassLabel, Dataset

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments, rounds
from hf_spectral_prune.calibration import parts
from hf_spectral_prune.cli.main import main
from hf_spectral_prune.criteria import CRITERIA, Criterion, plugins
from hf_spectral_prune.data.texts import build_calibration
from hf_spectral_prune.studies.comparison import (
    ComparisonArguments,
    check_equal_parameters,
    compare,
    comparison_cells,
    parameter_range,
    results,
    run,
    table,
)
from hf_spectral_prune.utils.files import plain

TINY = {"target_scope": "prunable", "round_to": 4, "min_ffn_units": 4, "disable_tqdm": True}
TRAINING = {"max_steps": 2, "learning_rate": 1e-2, "use_cpu": True, "report_to": "none"}


@pytest.fixture
def data(batches):
    """Calibration and held-out batches."""
    return build_calibration(batches), build_calibration([random_batch(4, 32, seed) for seed in (7, 8)])


def arguments(folder, **options) -> ComparisonArguments:
    values = {"criteria": ["spectral", "energy"], "reductions": [0.3], "output_dir": str(folder / "out")}
    return ComparisonArguments(**TINY | values | options)


def one(comparison, **wanted):
    """The cell with these options."""
    (found,) = [cell for cell in comparison.cells if all(cell[name] == value for name, value in wanted.items())]
    return found


# ---- what a cell is


def test_short_memory_changes_no_figure(data, tmp_path, monkeypatch):
    options = {"compensations": ["none", "least_squares"]}
    found = []
    for name, free in (("much", 2**40), ("little", 1)):
        monkeypatch.setattr(parts.psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free))
        comparison = compare(tiny_model(), arguments(tmp_path / name, **options), *data)
        found.append([(cell["label"], cell["compensation"], cell["metrics"]["perplexity"]) for cell in comparison.cells])
    assert found[0] == found[1] and len(found[0]) == 4


@pytest.mark.parametrize(
    ("label", "options", "compensation", "recovery", "layout"),
    [
        ("spectral", {}, "none", "none", "uniform"),
        pytest.param("spectral", {"signals": "loss"}, "least_squares", "none", "uniform", marks=pytest.mark.slow),
        pytest.param("random", {}, "least_squares", "none", "uniform", marks=pytest.mark.slow),
        pytest.param("ndi", {}, "none", "none", "uniform", marks=pytest.mark.slow),
        ("fisher", {}, "least_squares", "none", "per_layer"),
        pytest.param("energy", {}, "sequential", "lora", "uniform", marks=pytest.mark.slow),
        ("energy", {}, "none", "distill", "uniform"),
    ],
)
def test_a_cell_is_a_plain_run(label, options, compensation, recovery, layout, tmp_path, data):
    calibration, held_out = data
    train = [{name: value[0] for name, value in random_batch(1, 32, seed).items()} for seed in range(20, 28)]
    choice = {"recovery_args": {}, "training_args": TRAINING, "layout": layout}
    # Another criterion runs before, so that what cells share is not what they were alone with.
    args = arguments(
        tmp_path,
        criteria=["activation", label],
        criteria_args={label: options},
        reductions=[0.2, 0.4],
        compensations=[compensation],
        recoveries=[recovery],
        seeds=[3],
        **choice,
    )
    dense = tiny_model()
    comparison = compare(dense, args, calibration, held_out, train_dataset=train)
    cell = one(comparison, label=label, target_reduction=0.4)
    # A comparison gives all criteria one shape.
    plain_run = SpectralPruningArguments(
        allocation="proportional" if layout == "uniform" else "auto",
        criterion=label,
        criterion_args=options,
        target_reduction=0.4,
        compensation=compensation,
        recovery=recovery,
        seed=3,
        output_dir=str(tmp_path / "plain"),
        **TINY,
        **choice,
    )
    teacher = tiny_model() if recovery == "distill" else None
    pruner = SpectralPruner(tiny_model(), plain_run, calibration, held_out, train_dataset=train, teacher=teacher)
    output = pruner.prune()
    assert cell["metrics"]["perplexity"] == output.report["metrics_after"]["after_perplexity"]
    assert cell["parameters"] == output.metrics["parameters_after"]
    if recovery == "none":
        assert cell["recovered"] is None
    else:
        assert cell["recovered"]["kept"] == output.report["recovery"]["kept"]
        for name in ("before_loss", "after_loss", "train_loss"):
            assert cell["recovered"]["metrics"][name] == output.report["recovery"]["metrics"][name]
    sizes = {key: after for key, (_, after) in output.report["sizes"].items()}
    assert cell["widths"] == run._widths(sizes)
    assert all(torch.equal(value, tiny_model().state_dict()[name]) for name, value in dense.state_dict().items())
    assert not list(tmp_path.glob("*recovery*"))


@pytest.mark.slow
def test_criteria_of_a_reduction_end_at_equal_real_parameter_counts(tmp_path, data):
    names = sorted(name for name in CRITERIA if not name.startswith("test"))
    args = arguments(tmp_path, criteria=names, reductions=[0.2, 0.5])
    comparison = compare(tiny_model(num_hidden_layers=2), args, *data)
    assert not comparison.failed
    ranges = parameter_range(comparison.cells)
    assert ranges[0.2][0] == ranges[0.2][1] > ranges[0.5][0] == ranges[0.5][1]
    wrong = copy.deepcopy(comparison.cells)
    wrong[-1]["parameters"] += 1
    with pytest.raises(RuntimeError, match=rf"0\.5.*`{names[0]}`.*`{names[-1]}`"):
        check_equal_parameters(wrong)


def test_per_layer_sizes_may_differ_and_the_difference_is_recorded(tmp_path, data):
    args = arguments(tmp_path, criteria=["energy", "fisher", "magnitude"], layout="per_layer", allocation="scores", round_to=8)
    comparison = compare(tiny_model(intermediate_size=64), args, *data)
    (entry,) = json.loads((tmp_path / "out" / "comparison.json").read_text())["parameters"]
    counts = [cell["parameters"] for cell in comparison.cells]
    assert entry["difference"] == max(counts) - min(counts)
    assert any(isinstance(width, list) for cell in comparison.cells for width in cell["widths"].values())
    assert f"{min(counts):,} to {max(counts):,}" in table(comparison) or len(set(counts)) == 1


def test_passes_and_scores_are_shared(tmp_path, data, monkeypatch):
    passes, scored = [], []
    collect, score = run.collect_moments, run.rounds.score
    monkeypatch.setattr(
        run, "collect_moments", lambda *args, **options: passes.append(options["signals"]) or collect(*args, **options)
    )
    monkeypatch.setattr(run.rounds, "score", lambda *args: scored.append(args[2].name) or score(*args))
    args = arguments(
        tmp_path,
        criteria=["energy", "spectral", "magnitude", "loss", "fluctuation"],
        criteria_args={"loss": {"criterion": "spectral", "signals": "loss"}},
        reductions=[0.2, 0.3, 0.4],
        compensations=["none", "least_squares"],
    )
    assert len(compare(tiny_model(), args, *data).cells) == 30
    assert sorted(passes) == ["activations", "loss"]
    assert scored == ["energy", "spectral", "magnitude", "spectral", "fluctuation"]


def test_losses_are_measured_once_for_all_reductions(tmp_path, data, monkeypatch):
    measured = []
    curves = rounds.loss_curves
    monkeypatch.setattr(
        rounds, "loss_curves", lambda *args, **options: measured.append(options["repair"]) or curves(*args, **options)
    )
    options = {"reductions": [0.2, 0.3, 0.4], "compensations": ["none", "least_squares"], "layout": "per_layer"}
    assert len(compare(tiny_model(), arguments(tmp_path, **options), *data).cells) == 12
    assert [repair is not None for repair in measured] == [False, True] * 2


def test_random_criteria_and_recoveries_run_for_every_seed(tmp_path, data):
    assert [name for name, criterion in CRITERIA.items() if criterion.is_random] == ["random"]
    args = arguments(tmp_path, criteria=["energy", "random"], seeds=[0, 1, 2], reductions=[0.2, 0.4])
    comparison = compare(tiny_model(), args, *data)
    assert [(cell["label"], cell["seed"]) for cell in comparison.cells if cell["target_reduction"] == 0.2] == [
        ("energy", 0),
        ("random", 0),
        ("random", 1),
        ("random", 2),
    ]
    values = [
        cell["metrics"]["perplexity"] for cell in comparison.cells if (cell["label"], cell["target_reduction"]) == ("random", 0.4)
    ]
    assert len(set(values)) == 3
    mean = sum(values) / 3
    spread = (sum((value - mean) ** 2 for value in values) / 2) ** 0.5
    assert f"{results.number(mean)} ± {results.number(spread, like=mean)} (3)" in table(comparison)
    assert "these ran once for all seeds: `energy`." in table(comparison)
    recovered = comparison_cells(arguments(tmp_path, seeds=[0, 1], recoveries=["none", "lora"], training_args=TRAINING))
    assert [(cell.args.recovery, cell.args.seed) for cell in recovered if cell.label == "energy"] == [
        ("none", 0),
        ("lora", 0),
        ("lora", 1),
    ]


def test_a_classifier_is_measured_by_accuracy(tmp_path):
    model = tiny_encoder("bert", num_labels=2)

    def labelled(seed):
        return encoder_batch(model, 8, 16, seed) | {"labels": torch.arange(8) % 2}

    args = arguments(tmp_path, criteria=["energy", "taylor"], units=["ffn"])
    comparison = compare(model, args, [labelled(0)], [labelled(1), labelled(2)])
    assert comparison.metric == "accuracy"
    assert 0 <= comparison.cells[0]["metrics"]["accuracy"] <= 1
    assert "Held-out accuracy" in table(comparison)
    with pytest.raises(ValueError, match="labels"):
        compare(model, arguments(tmp_path / "b", criteria=["taylor"], units=["ffn"]), [encoder_batch(model)], [labelled(1)])


def test_labels_of_a_comparison_mean_what_their_names_say(tmp_path):
    names = ["a", "b"]
    model = tiny_encoder("bert", num_labels=2, id2label=dict(enumerate(names)), label2id={"a": 0, "b": 1})
    batch = random_batch(16, 12)
    right = model(**batch).logits.argmax(-1)
    rows = Dataset.from_dict({"input_ids": batch["input_ids"].tolist(), "label": (1 - right).tolist()})
    rows = rows.cast_column("label", ClassLabel(names=names[::-1]))
    args = arguments(tmp_path, criteria=["magnitude"], units=["ffn"])
    assert compare(model, args, rows, rows).dense["metrics"]["accuracy"] == 1


# ---- the folder


def flags(folder, **more) -> list[str]:
    values = {
        "model_name_or_path": folder / "model",
        "calibration_file": folder / "text.txt",
        "output_dir": folder / "out",
        "max_seq_length": 32,
        "num_calibration_samples": 8,
        "num_eval_samples": 4,
        **TINY,
        "criteria": "spectral energy random",
        "reductions": "0.3 0.5",
    }
    words = []
    for name, value in (values | more).items():
        if value is not None:
            # JSON stays one word, lists become several.
            words += [f"--{name}", *([value] if str(value).startswith("{") else str(value).split())]
    return words


def fails(capsys, words: list[str], *messages: str, code: int = 2) -> None:
    assert main(["compare", *words]) == code
    lines = [line for line in capsys.readouterr().err.strip().splitlines() if line.startswith("cria")]
    assert len(lines) == 1
    for message in messages:
        assert message in lines[0]


def finished(folder) -> dict[str, int]:
    """{file of a finished cell: when it was written, in nanoseconds}."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "out" / "cells").glob("*.json")}


@pytest.mark.slow
def test_a_killed_run_continues_with_the_missing_cells_alone(folder, capsys):
    words = flags(
        folder,
        criteria="spectral energy random",
        reductions="0.3 0.5",
        seeds="0 1 2",
        num_eval_samples=80,  # slow enough to be caught in the middle
    )
    command = [sys.executable, "-m", "hf_spectral_prune.cli.main", "compare", *words]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as process:
        patience = time.monotonic() + 120
        while len(finished(folder)) < 3 and process.poll() is None and time.monotonic() < patience:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    before = finished(folder)
    total = 2 * 2 + 3 * 2 + 1  # with the dense model
    assert 3 <= len(before) < total
    assert not (folder / "out" / "comparison.json").exists()
    assert main(["compare", *words]) == 0
    after = finished(folder)
    assert len(after) == total
    assert {name: after[name] for name in before} == before
    assert f"{len(before) - 1} of {total - 1} cells are finished already" in capsys.readouterr().err
    written = {path: path.stat().st_mtime_ns for path in (folder / "out" / "cells").iterdir()}
    assert main(["compare", *words]) == 0
    assert {path: path.stat().st_mtime_ns for path in written} == written
    whole = json.loads((folder / "out" / "comparison.json").read_text())
    assert main(["compare", *flags(folder), *words, "--output_dir", str(folder / "again")]) == 0
    again = json.loads((folder / "again" / "comparison.json").read_text())
    assert [cell["metrics"] for cell in again["cells"]] == [cell["metrics"] for cell in whole["cells"]]


def test_a_wider_grid_adds_cells_and_labels_are_only_names(tmp_path, data):
    first = compare(tiny_model(), arguments(tmp_path), *data)
    before = finished(tmp_path)
    args = arguments(
        tmp_path, criteria=["energy", "mine"], criteria_args={"mine": {"criterion": "spectral"}}, reductions=[0.3, 0.5]
    )
    second = compare(tiny_model(), args, *data)
    after = finished(tmp_path)
    assert len(after) == len(before) + 2
    assert {name: after[name] for name in before} == before
    assert one(second, label="mine", target_reduction=0.3)["finished_at"] == one(first, label="spectral")["finished_at"]
    # An option that is spelt out at its default is the same cell.
    spelt = arguments(tmp_path, criteria=["spectral"], criteria_args={"spectral": {"num_neighbors": 15}})
    compare(tiny_model(), spelt, *data)
    assert finished(tmp_path) == after


def test_another_model_or_text_is_not_mixed_in(tmp_path, data):
    calibration, held_out = data
    compare(tiny_model(), arguments(tmp_path), calibration, held_out)
    before = finished(tmp_path)
    other = tiny_model()
    with torch.no_grad():
        other.model.norm.weight[0] += 0.5
    text = build_calibration([random_batch(4, 32, 99)])
    for what, given in {
        "another model": (other, calibration, held_out),
        "other calibration data": (tiny_model(), text, held_out),
        "other held-out data": (tiny_model(), calibration, text),
        "another model and other calibration": (other, text, held_out),
    }.items():
        model, *sides = given
        with pytest.raises(ValueError, match=f"{what}.*overwrite_output_dir"):
            compare(model, arguments(tmp_path), *sides)
    assert finished(tmp_path) == before
    compare(other, arguments(tmp_path, overwrite_output_dir=True), text, held_out)
    assert len(finished(tmp_path)) == 3 and not set(finished(tmp_path)) & set(before)


def test_a_damaged_cell_is_run_again(tmp_path, data):
    comparison = compare(tiny_model(), arguments(tmp_path), *data)
    for name, text in zip(sorted(finished(tmp_path)), ("{half a ce", "{}", '{"error": null}'), strict=True):
        (tmp_path / "out" / "cells" / name).write_text(text)
    again = compare(tiny_model(), arguments(tmp_path), *data)
    assert [cell["metrics"] for cell in again.cells] == [cell["metrics"] for cell in comparison.cells]
    assert again.dense["metrics"] == comparison.dense["metrics"]


# ---- a criterion that fails


@dataclass(frozen=True)
class Moody(Criterion):
    """Scores like `random`, or raises what it is told to."""

    good: bool = False

    def score(self, data):
        if not self.good and data.group.layer == 1:
            raise KeyError("no score\nfor layer 1")
        return torch.arange(data.group.size, dtype=torch.float64)


@pytest.fixture
def moody(monkeypatch):
    """A package that offers `moody`."""
    point = EntryPoint("moody", f"{__name__}:Moody", plugins.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point] if group == plugins.GROUP else [])
    monkeypatch.setattr(EntryPoint, "load", lambda self: Moody)
    yield
    CRITERIA.pop("moody", None)


@pytest.mark.usefixtures("moody")
def test_a_criterion_that_fails_loses_no_cell(folder, capsys):
    words = flags(folder, criteria="energy moody magnitude")
    fails(capsys, words, "2 of 6 cells failed", "`moody`: KeyError", code=1)
    whole = json.loads((folder / "out" / "comparison.json").read_text())
    assert [cell["error"] is None for cell in whole["cells"]] == [True, True, False, False, True, True]
    before = finished(folder)
    assert main(["compare", *words]) == 1
    output = capsys.readouterr()
    assert "| moody " in output.out and output.out.count("failed") == 2
    changed = {name for name, written in finished(folder).items() if before[name] != written}
    assert len(changed) == 2  # the failed ones, tried again
    assert main(["compare", *flags(folder, criteria="moody", criteria_args='{"moody":{"good":true}}')]) == 0


def test_a_failure_in_a_cell_leaves_the_criterions_other_cells(tmp_path, data, monkeypatch):
    cut = run.rounds.cut

    def fail_once(model, args, plan, evidence):
        if args.target_reduction == 0.3 and args.criterion == "energy":
            raise torch.OutOfMemoryError("no memory left")
        return cut(model, args, plan, evidence)

    monkeypatch.setattr(run.rounds, "cut", fail_once)
    comparison = compare(tiny_model(), arguments(tmp_path, reductions=[0.2, 0.3, 0.5]), *data)
    (failed,) = comparison.failed
    assert (failed["label"], failed["target_reduction"]) == ("energy", 0.3)
    assert failed["error"] == "OutOfMemoryError: no memory left"
    assert "failed" in table(comparison)
    rows = list(csv.DictReader((tmp_path / "out" / "comparison.csv").open()))
    assert [row["error"] for row in rows].count("OutOfMemoryError: no memory left") == 1


# ---- the results


def test_recipe_gives_table_json_csv_and_plot(folder, capsys):
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        "criteria: [spectral, narrow, random]\n"
        "criteria_args:\n  narrow: {criterion: spectral, num_neighbors: 3}\n"
        "reductions: [0.3, 0.5]\ncompensations: [none, least_squares]\nseeds: [1, 2]\n"
    )
    words = flags(folder, criteria=None, reductions=None)
    assert main(["compare", str(recipe), *words]) == 0
    out = capsys.readouterr().out
    assert "Least squares compensation, no recovery" in out and "| narrow " in out
    whole = json.loads((folder / "out" / "comparison.json").read_text())
    assert len(whole["cells"]) == 2 * 2 * (1 + 1 + 2)
    assert whole["cells"][4]["criterion_args"]["num_neighbors"] == 3
    assert whole["protocol"]["model"]["name"] == "model"
    assert {"torch", "transformers"} <= set(whole["versions"])
    assert "held out" in whole["protocol"]["evaluation"]["source"]
    assert whole["arguments"]["seeds"] == [1, 2]
    rows = list(csv.DictReader((folder / "out" / "comparison.csv").open()))
    assert [row["label"] for row in rows] == ["dense", *(cell["label"] for cell in whole["cells"])]
    for row, cell in zip(rows[1:], whole["cells"], strict=True):
        assert float(row["perplexity"]) == cell["metrics"]["perplexity"]
        assert json.loads(row["criterion_args"]) == cell["criterion_args"]
    assert (folder / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in (folder / "out").iterdir()} == {
        "cells",
        "protocol.json",
        "comparison.json",
        "comparison.csv",
        "comparison.png",
        "report.html",
    }
    assert "3 criteria compared" in (folder / "out" / "report.html").read_text()


def test_lines_show_means_and_the_seeds_range_on_a_logarithmic_axis(tmp_path, data, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: drawn.append(figure) or path.touch())
    args = arguments(tmp_path, criteria=["energy", "random"], seeds=[0, 1], reductions=[0.3, 0.5])
    comparison = compare(tiny_model(), args, *data)
    comparison.cells[0]["metrics"]["perplexity"] = 1e6
    comparison.cells[1]["metrics"]["perplexity"] = "inf"
    results.write_results(comparison, tmp_path / "out")
    (axis,) = drawn[1].axes
    lines = {container.get_label(): container[0] for container in axis.containers}
    energy, random = comparison.cells[:2], comparison.cells[2:]
    assert lines["energy"].get_xydata().tolist() == [[energy[0]["parameters"] / 1e6, 1e6]]
    means = [sum(cell["metrics"]["perplexity"] for cell in random if cell["target_reduction"] == r) / 2 for r in (0.5, 0.3)]
    assert lines["random"].get_ydata().tolist() == pytest.approx(means)
    assert axis.get_yscale() == "log" and drawn[0].axes[0].get_yscale() == "linear"
    assert [text.get_text() for text in drawn[1].legends[0].get_texts()] == ["dense", "energy", "random"]


def test_figures_that_are_not_finite_are_strict_json():
    text = json.dumps(plain({"a": float("inf"), "b": [float("nan"), 1.5], "c": None, "d": True}), allow_nan=False)
    assert json.loads(text) == {"a": "inf", "b": ["nan", 1.5], "c": None, "d": True}
    assert results.number("inf") == "inf"
    assert [results.number(value) for value in (0.87654, 13.828, 1234.5, 3.2e6)] == ["0.8765", "13.83", "1,234", "3.20e+06"]


# ---- bad input


@pytest.mark.parametrize(
    ("more", "messages"),
    [
        ({"criteria": "spectral energi"}, ["`energi`", "Did you mean `energy`"]),
        ({"criteria": "energy energy"}, ["`criteria`", "twice"]),
        ({"criteria": "energy e", "criteria_args": '{"e":{"criterion":"energy"}}'}, ["`energy` and `e`", "same options"]),
        ({"criteria_args": "{x"}, ["criteria_args", "JSON"]),
        ({"criteria_args": '{"spectral":3}'}, ["criteria_args", "object of objects"]),
        ({"criteria_args": '{"spectrl":{}}'}, ["`spectrl`", "Did you mean `spectral`"]),
        ({"criteria_args": '{"spectral":{"neighbors":3}}'}, ["`spectral`", "`num_neighbors`"]),
        ({"reductions": "0.2 1.5"}, ["reductions", "1.5", "between 0 and 1"]),
        ({"reductions": "0.2 nan"}, ["reductions", "nan"]),
        ({"reductions": "0.3 0.99"}, ["0.99", "out of reach"]),
        ({"reductions": "0.3 0.0001"}, ["0.0001", "smallest step"]),
        ({"compensations": "bias"}, ["compensations", "`least_squares`"]),
        ({"recoveries": "lorra"}, ["recoveries", "Did you mean `lora`"]),
        ({"recoveries": "lora", "training_args": '{"max_step":1}'}, ["`max_steps`"]),
        ({"recoveries": "lora", "training_args": '{"eval_strategy":"often"}'}, ["training_args", "often"]),
        ({"recoveries": "lora", "recovery_args": '{"lora_target_modules":["c_attn"]}'}, ["`c_attn`"]),
        ({"seeds": "one"}, ["seeds"]),
        ({"units": "ffm"}, ["`ffm`", "`ffn`"]),
        ({"output_dir": None}, ["--output_dir"]),
        ({"num_eval_samples": 0}, ["num_eval_samples"]),
        ({"resume_from_checkpoint": "latest"}, ["--resume_from_checkpoint", "`cria prune` reads it"]),
        ({"model_name_or_path": "/nowhere/model"}, ["/nowhere/model", "not a folder"]),
        ({"criterion": "energy"}, ["--criterion", "`--criteria`"]),
    ],
    ids=lambda value: str(value)[:50],
)
def test_bad_input_is_one_line_and_exit_2(folder, capsys, more, messages):
    fails(capsys, flags(folder, **more), *messages)
    assert not (folder / "out").exists()


def test_names_are_checked_before_a_model_is_loaded(folder, capsys):
    for more in ({"criteria": "energi"}, {"reductions": "1.5"}, {"units": "ffm"}, {"recoveries": "lorra"}):
        (value,) = more.values()
        fails(capsys, flags(folder, model_name_or_path="/nowhere/model", **more), value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("criteria: []", "at least one"),
        ("criteria: energy", "must be a list"),
        ("reductions: []", "at least one"),
        ("reductions: [a]", "'a'"),
        ("seeds: [true]", "True"),
        ("criterias: [energy]", "`criteria`"),
    ],
)
def test_bad_recipe_is_one_line(folder, capsys, line, message):
    (folder / "recipe.yaml").write_text(line + "\n")
    fails(capsys, [str(folder / "recipe.yaml"), *flags(folder, criteria=None, reductions=None)], message)


def test_folders_that_are_no_comparison_are_refused_and_left(folder, capsys):
    (folder / "out").mkdir()
    (folder / "out" / "mine.txt").write_text("mine")
    for more in ({}, {"overwrite_output_dir": True}):
        fails(capsys, flags(folder, **more), "something else", "mine.txt")
    assert (folder / "out" / "mine.txt").read_text() == "mine"
    (folder / "out" / "protocol.json").write_text("{}")
    fails(capsys, flags(folder), "not the protocol of a comparison")
    (folder / "out" / "protocol.json").write_text('{"model": {}, "calibration": null, "evaluation": null, "package": ""}')
    fails(capsys, flags(folder), "not the protocol of a comparison")
    fails(capsys, flags(folder, output_dir=folder / "text.txt"), "is a file")


def test_a_comparison_of_another_model_is_told_by_the_command(folder, capsys):
    assert main(["compare", *flags(folder, criteria="energy")]) == 0
    tiny_model("qwen2").save_pretrained(folder / "model")
    fails(capsys, flags(folder, criteria="energy"), "another model", "overwrite_output_dir")


def test_a_model_without_perplexity_is_told_what_to_do(folder, capsys):
    tiny_encoder("bert").save_pretrained(folder / "model")
    fails(capsys, flags(folder), "BertForSequenceClassification", "label_column", "labelled data")


def test_labelled_texts_are_measured_by_the_metric_that_is_named(folder, capsys):
    tiny_encoder("bert").save_pretrained(folder / "model")
    rows = [{"text": f"w{3 + index % 90} w5", "label": index % 2} for index in range(60)]
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    words = flags(
        folder, calibration_file=folder / "rows.jsonl", label_column="label", units="ffn", criteria="taylor", num_eval_samples=12
    )
    assert main(["compare", *words]) == 0
    assert "Held-out accuracy" in capsys.readouterr().out
    fails(capsys, [*words, "--metric", "f1"], "other held-out data or metrics")


# ---- the benchmark


def test_the_benchmark_runs_on_a_tiny_model(folder, capsys, monkeypatch):
    tiny_model(max_position_embeddings=512, intermediate_size=64).save_pretrained(folder / "model")
    words = torch.randint(3, VOCABULARY, (17_000,), generator=torch.Generator().manual_seed(1)).tolist()
    for name in ("train", "test", "wiki"):
        with gzip.open(folder / f"{name}.txt.gz", "wt") as file:
            file.write("<doc id=1>\n" + " ".join(f"w{word}" for word in words))
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    benchmark = importlib.import_module("criteria_smollm2")
    words = ["--wikitext", str(folder), "--wikipedia", str(folder / "wiki.txt.gz"), "--model", str(folder / "model")]
    words += ["--criteria", "energy", "random", "--seeds", "0", "1", "--reductions", "0.3", "--threads", "1"]
    benchmark.main([*words, "--cells", str(folder / "cells"), "--output", str(folder / "found.json")])
    out = capsys.readouterr().out
    assert "Calibrated on Wikipedia" in out and "s left" in out
    found = json.loads((folder / "found.json").read_text())
    assert [len(found["calibrations"][text]["cells"]) for text in ("WikiText-2 train", "Wikipedia")] == [3, 3]
    for text in found["calibrations"].values():
        assert (text["protocol"]["calibration"]["num_sequences"], text["protocol"]["evaluation"]["num_sequences"]) == (32, 16)
        assert all(entry["difference"] == 0 for entry in text["parameters"])
    assert str(folder) not in json.dumps(found)
    assert (folder / "found.png").read_bytes().startswith(b"\x89PNG")
