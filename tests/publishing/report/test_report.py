"""The report page: every section from real runs, offline, escaped, the same when built again, and bad folders told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import random_batch, tiny_model
from page_check import Page

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.cli.main import main
from hf_spectral_prune.publishing import read_folder
from hf_spectral_prune.publishing.formats import number
from hf_spectral_prune.publishing.report.sections import _losses
from hf_spectral_prune.publishing.report.write import write_report
from hf_spectral_prune.studies.comparison.report import write_comparison_report

pytestmark = pytest.mark.usefixtures("report_pages")

SECTIONS = ["before-and-after", "widths", "scores", "spectrum", "rounds", "recovery", "cost", "settings"]
HELD_OUT = [random_batch(4, 32, 9)]


def pruned(folder: Path, model=None, *, measured: bool = True, **fields) -> Path:
    """Prunes a tiny model and saves it."""
    options = {"disable_tqdm": True, "target_reduction": 0.4, "target_scope": "prunable", "round_to": 4, "min_ffn_units": 4}
    args = SpectralPruningArguments(output_dir=str(folder), self_check=False, **options | fields)
    pruner = SpectralPruner(
        model or tiny_model(),
        args,
        [random_batch(4, 32, seed) for seed in range(4)],
        HELD_OUT if measured else None,
        train_dataset=[{"input_ids": row} for row in random_batch(8, 16, 5)["input_ids"].tolist()],
    )
    pruner.prune()
    pruner.save_model()
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a run that measured everything: three rounds, held-out loss after each, recovery."""
    training = {"max_steps": 4, "per_device_train_batch_size": 4, "use_cpu": True}
    return pruned(
        tmp_path_factory.mktemp("runs") / "whole",
        num_rounds=3,
        eval_strategy="steps",
        layout="per_layer",
        recovery="full",
        training_args=training,
    )


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    """A copy of it, without weights, to be changed at will."""
    return Path(shutil.copytree(whole, tmp_path / "copy", ignore=shutil.ignore_patterns("*.safetensors")))


def read(folder: Path) -> Page:
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert page.faults == []
    return page


def change(folder: Path, file: str, **entries) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


# ---- whole pages


def test_a_run_that_measured_everything_has_every_section(whole):
    page = read(whole)
    assert list(page.sections) == SECTIONS
    assert not any("class" in section for section in page.sections.values())
    assert "Not measured" not in page.text
    # Widths, scores of two kinds in two rounds, two spectra, rounds, recovery, cost.
    assert len(page.images) == 1 + 4 + 2 + 3
    assert all(image["role"] == "img" and len(image["aria-label"]) > 20 for image in page.images)
    assert page.tags["figcaption"] == page.tags["figure"] == len(page.images)
    assert page.tags["details"] >= len(page.images)
    assert page.tags["script"] == page.tags["img"] == 0


def test_the_figures_are_those_of_the_files(whole):
    page = read(whole)
    report = json.loads((whole / "pruning_report.json").read_text())
    first = json.loads((whole / "pruning_scores.json").read_text())["rounds"][0]
    logged = json.loads((whole / "pruner_state.json").read_text())["log_history"]
    figures = [
        f"{report['parameters_before']:,}",
        f"{report['parameters_after']:,}",
        number(report["metrics_after"]["after_perplexity"]),
        number(report["recovery"]["metrics"]["after_loss"]),
        *(number(group["smallest_kept"]) for group in first.values()),
        *(number(group["spectrum"][0]) for group in first.values()),
        *(f"{entry['parameters']:,}" for entry in logged if "parameters" in entry),
        *(number(entry["eval_loss"]) for entry in logged if "eval_loss" in entry),
        *(number(entry["loss"]) for entry in report["recovery"]["log_history"] if "loss" in entry),
        *(number(seconds) for seconds in report["timings"].values()),
    ]
    assert [figure for figure in figures if figure not in page.words] == []


def test_the_card_shows_the_plot(whole):
    assert "](plots/widths.png)" in (whole / "README.md").read_text()
    for name in ("widths", "scores-ffn", "scores-heads", "scores-ffn-first", "scores-heads-first"):
        assert (whole / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_built_again_it_is_the_same_under_any_name(whole, tmp_path, capsys):
    moved = shutil.copytree(whole, tmp_path / "moved", ignore=shutil.ignore_patterns("report.html", "plots", "*.safetensors"))
    assert main(["report", str(moved)]) == 0
    assert "report.html" in capsys.readouterr().out
    assert (moved / "report.html").read_bytes() == (whole / "report.html").read_bytes()
    assert {path.name for path in (moved / "plots").iterdir()} == {path.name for path in (whole / "plots").iterdir()}
    for plot in (whole / "plots").iterdir():
        assert (moved / "plots" / plot.name).read_bytes() == plot.read_bytes()
    assert not [path for path in moved.rglob("*") if ".partial" in path.name]


@pytest.mark.parametrize("layers", [1, 40])
def test_a_model_of_any_depth(layers, tmp_path):
    quick = {"compensation": "none", "allocation": "proportional"}
    page = read(pruned(tmp_path / "out", tiny_model(num_hidden_layers=layers), measured=False, **quick))
    assert f"Bars of {layers} layers" in page.images[0]["aria-label"]
    assert f"Scores of the ffn neurons of {layers} layers" in page.images[1]["aria-label"]


def test_what_was_not_measured_is_said(tmp_path):
    page = read(pruned(tmp_path / "out", measured=False, criterion="magnitude", logging_strategy="no"))
    assert [name for name in SECTIONS if name not in page.sections] == ["spectrum", "rounds", "recovery"]
    assert "Not measured in this run" not in page.text
    assert "Quality was not measured in this run" in page.text and "Speed was not measured in this run" in page.text


@pytest.mark.parametrize(
    ("file", "entries", "sections"),
    [
        ("pruning_scores.json", None, ["scores", "spectrum"]),
        ("pruning_report.json", {"recovery": None}, ["recovery"]),
        pytest.param("pruning_report.json", {"timings": {}}, ["cost"], marks=pytest.mark.slow),
        pytest.param("pruner_state.json", {"log_history": []}, ["rounds"], marks=pytest.mark.slow),
    ],
)
def test_a_section_without_data_is_left_out(file, entries, sections, folder):
    if entries is None:
        (folder / file).unlink()
    else:
        change(folder, file, **entries)
    write_report(folder)
    page = read(folder)
    assert [name for name in SECTIONS if name not in page.sections] == sections


def test_a_note_stands_there_once_and_the_foot_names_files_that_exist(folder):
    change(folder, "pruning_plan.json", notes=["A note of its own."])
    (folder / "pruning_scores.json").unlink()
    assert main(["report", str(folder)]) == 0
    text = read(folder).text
    assert text.count("A note of its own.") == 1
    assert "pruning_report.json" in text and "pruning_scores.json" not in text


def test_without_the_growth_of_memory_time_is_drawn_alone(folder):
    report = json.loads((folder / "pruning_report.json").read_text())
    del report["peak_memory_growth"], report["recovery"]["log_history"]
    (folder / "pruning_report.json").write_text(json.dumps(report))
    write_report(folder)
    page = read(folder)
    assert "Seconds per step." in page.text and "logged no curve" in page.text


# ---- what the page may hold


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;`$x_1$"


def test_every_text_is_escaped(folder):
    report = json.loads((folder / "pruning_report.json").read_text())
    plan = json.loads((folder / "pruning_plan.json").read_text())
    report["base_model"] = {"name": HOSTILE, "hub_id": None}
    report["evaluation"]["source"] = report["calibration"]["source"] = HOSTILE
    report["arguments"] |= {"run_name": HOSTILE, HOSTILE: 1}
    report["versions"][HOSTILE] = HOSTILE
    report["recovery"]["notes"] = [HOSTILE]
    report["timings"][HOSTILE] = 1.5
    report["metrics_before"][f"before_{HOSTILE}"] = report["metrics_after"][f"after_{HOSTILE}"] = 0.5
    (folder / "pruning_report.json").write_text(json.dumps(report))
    (folder / "pruning_plan.json").write_text(json.dumps(plan | {"notes": [HOSTILE], "criterion": HOSTILE}))
    change(folder, "config.json", architectures=[HOSTILE + "ForCausalLM"])
    write_report(folder)
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text and "<img" not in text
    assert text.count("&lt;script&gt;") >= 10
    page = read(folder)
    assert page.tags["script"] == page.tags["img"] == 0
    assert any("<script>alert(1)</script>" in words for words in page.words)


def test_group_names_of_a_stranger_make_neither_markup_nor_paths(folder):
    for name in ("pruning_report.json", "pruning_scores.json", "pruning_plan.json"):
        text = (folder / name).read_text().replace("layers.0.ffn", "<b>.0.../../x").replace("layers.1.ffn", "stem.f<i>n")
        (folder / name).write_text(text)
    shutil.rmtree(folder / "plots")
    write_report(folder)
    page = read(folder)
    assert page.tags["b"] == page.tags["i"] == 0
    assert {path.parent for path in folder.parent.rglob("*.png")} == {folder / "plots"}


def test_figures_that_are_not_finite_are_shown_as_such(folder):
    report = json.loads((folder / "pruning_report.json").read_text())
    report["metrics_after"] |= {"after_perplexity": float("inf"), "after_loss": float("nan")}
    report["recovery"]["log_history"][0]["loss"] = float("nan")
    (folder / "pruning_report.json").write_text(json.dumps(report))
    write_report(folder)
    assert {"inf", "nan"} <= set(read(folder).words)


def test_a_stopping_rules_trials_are_not_taken_for_results(tmp_path):
    out = pruned(tmp_path / "out", num_rounds=2, eval_strategy="steps", stop_metric="eval_loss", stop_drop=100.0)
    saved = read_folder(out)
    log = saved.state["log_history"]
    values = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    assert len(values) == 4  # masked 1, after 1, masked 2, after 2
    assert _losses(saved, log, 2) == ({1: values[1], 2: values[3]}, {1: values[0], 2: values[2]})
    assert "with its units masked" in read(out).words


# ---- comparisons


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> Path:
    from hf_spectral_prune.studies.comparison import ComparisonArguments, compare

    out = tmp_path_factory.mktemp("runs") / "compared"
    args = ComparisonArguments(
        output_dir=str(out),
        criteria=["energy", "random"],
        reductions=[0.2, 0.4],
        compensations=["none", "least_squares"],
        seeds=[1, 2],
        target_scope="prunable",
        round_to=4,
        min_ffn_units=4,
        disable_tqdm=True,
    )
    compare(tiny_model(), args, [random_batch(4, 32, seed) for seed in range(2)], HELD_OUT)
    return out


def test_a_comparison_gets_a_page(compared, capsys):
    assert main(["report", str(compared)]) == 0
    page = read(compared)
    assert list(page.sections) == ["verdict", "block-0", "block-1", "cost", "settings"]
    assert len(page.images) == 2 and all("energy, random" in image["aria-label"] for image in page.images)
    whole = json.loads((compared / "comparison.json").read_text())
    assert f"{whole['dense']['parameters']:,}" in page.words
    energy = next(cell for cell in whole["cells"] if cell["label"] == "energy")
    assert f"{energy['metrics']['perplexity']:.2f}" in page.words
    before = (compared / "report.html").read_bytes()
    assert main(["report", str(compared)]) == 0
    assert (compared / "report.html").read_bytes() == before


def test_failed_cells_and_strange_labels_of_a_comparison_are_shown(compared, tmp_path):
    whole = json.loads((compared / "comparison.json").read_text())
    for cell in whole["cells"]:
        if cell["label"] == "random":
            cell |= {"error": f"It broke: {HOSTILE}", "label": HOSTILE}
        elif cell["compensation"] == "none":
            cell["metrics"]["perplexity"] = "inf"
    (tmp_path / "comparison.json").write_text(json.dumps(whole))
    write_comparison_report(tmp_path)
    page = read(tmp_path)
    assert page.tags["script"] == 0 and "failed" in page.words
    assert len(page.images) == 1 and "None of these models has a figure to draw." in page.text


# ---- bad folders


def test_a_report_that_fails_does_not_cost_the_model(tmp_path, monkeypatch):
    from hf_spectral_prune.saving import folder as saving

    def fail(folder):
        raise ValueError("No such figure.")

    said = []
    monkeypatch.setattr(saving, "write_report", fail)
    monkeypatch.setattr(saving.logger, "warning", said.append)
    out = pruned(tmp_path / "out", measured=False, criterion="magnitude")
    assert (out / "model.safetensors").is_file() and not (out / "report.html").exists()
    assert said == ["The report page was not written. No such figure."]


def broken(folder: Path, file: str, text: str | None) -> None:
    if text is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(text)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("pruning_report.json", None, "has no `pruning_report.json`"),
        ("pruning_report.json", "{", "is not JSON"),
        ("pruning_report.json", "{}", "no figure `parameters_before`"),
        ("pruning_plan.json", "[]", "not a pruning plan"),
        ("pruning_scores.json", "[1, 2]", "no scores of a pruning run"),
        ("pruning_scores.json", '{"format_version": 9, "rounds": []}', "have format 9"),
        ("pruning_scores.json", '{"format_version": 1, "rounds": [{"a.b": {"units": 3}}]}', "no scores of a pruning run"),
        (
            "pruning_scores.json",
            '{"format_version": 1, "rounds": [{"a.b": {"units": 3, "kept": 9, "largest_removed": 0, "smallest_kept": 0, '
            '"scores": [1]}}]}',
            "9 of 3 units kept",
        ),
    ],
)
def test_a_broken_folder_is_told_in_a_line_and_keeps_its_page(file, text, message, folder, capsys):
    before = (folder / "report.html").read_bytes()
    broken(folder, file, text)
    assert main(["report", str(folder)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line and "Error" not in line.split("(")[0]
    assert (folder / "report.html").read_bytes() == before


@pytest.mark.parametrize(
    "entries",
    [
        {"parameters_before": "many"},
        {"parameters_after": None},
        {"sizes": {"layers.0.ffn": 3}},
        {"sizes": [1]},
        {"metrics_before": {"before_loss": "low"}},
        {"timings": [1.0]},
        {"peak_memory_growth": {"start": 5}},
        {"recovery": {"kept": "recovered"}},
        {"recovery": {"kept": "recovered", "metrics": {}, "log_history": [3]}},
        {"base_model": "me/model"},
        {"arguments": []},
        {"versions": None},
    ],
    ids=str,
)
def test_a_figure_edited_into_another_kind_is_told_in_a_line(entries, folder, capsys):
    before = (folder / "report.html").read_bytes()
    change(folder, "pruning_report.json", **entries)
    assert main(["report", str(folder)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert str(folder) in line
    assert (folder / "report.html").read_bytes() == before


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format_version": 1}', '{"format_version": 7}'])
def test_a_broken_comparison_is_told_in_a_line(text, tmp_path, capsys):
    (tmp_path / "comparison.json").write_text(text)
    assert main(["report", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "comparison.json" in line and "`cria compare` again" in line
    assert [path.name for path in tmp_path.iterdir()] == ["comparison.json"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "There is no folder"),
        (["nowhere"], "is not a folder"),
        (["{folder}", "--base_model", "x"], "`--base_model` is no flag"),
    ],
)
def test_bad_words_are_told_in_a_line(words, message, folder, capsys):
    assert main(["report", *(word.format(folder=folder) for word in words)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
