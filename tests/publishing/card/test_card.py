"""The model card: one whole card, figures that are missing, and a README.md that is there already."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import random_batch, tiny_model
from huggingface_hub import ModelCard, ModelCardData
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.cli.main import main
from hf_spectral_prune.cli.screen import ending
from hf_spectral_prune.publishing import build_card, read_card, read_folder, write_card
from hf_spectral_prune.publishing.card.base_model import base_model_facts
from hf_spectral_prune.publishing.card.tables import before_after_table
from hf_spectral_prune.publishing.card.write import _licence_words

HERE = Path(__file__).parent


@pytest.fixture
def folder(tmp_path) -> Path:
    """The figures of a per-layer run that measured everything, to be changed at will."""
    return Path(shutil.copytree(HERE.parent / "folder", tmp_path / "cria-small"))


def change(folder: Path, *names: str, to=None) -> None:
    """Takes a figure out of the report, or puts another in its place."""
    file = folder / "pruning_report.json"
    report = place = json.loads(file.read_text())
    for name in names[:-1]:
        place = place[name]
    if to is None:
        del place[names[-1]]
    else:
        place[names[-1]] = to
    file.write_text(json.dumps(report))


def test_whole_card(folder):
    (folder / "plots").mkdir()
    (folder / "plots" / "widths.png").touch()
    text = write_card(folder, "me/cria-small").read_text()
    assert text == (HERE / "expected_card.md").read_text()
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model == "someone/small-llama"
    assert {result.metric_name: result.metric_value for result in card.data.eval_results}["perplexity, after pruning"] == 24.0


@pytest.mark.parametrize(
    "names",
    [
        ("parameters_before",),
        ("parameters_after",),
        ("reduction",),
        ("sizes",),
        ("layout",),
        ("target_reduction",),
        ("target_scope",),
        ("arguments",),
        ("arguments", "compensation"),
        ("arguments", "allocation"),
        ("versions",),
        ("machine", "cpus"),
        ("calibration", "source"),
        ("evaluation", "num_sequences"),
        ("recovery", "metrics"),
        ("latency", "after"),
        ("peak_memory", "host"),
        ("self_check", "remote_code", "max_abs_diff"),
    ],
    ids=".".join,
)
def test_missing_figure_is_told_with_its_file(names, folder, capsys):
    change(folder, *names)
    assert main(["card", str(folder)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"no figure `{'.'.join(names)}" in line
    assert str(folder / "pruning_report.json") in line
    assert "save the model again" in line
    assert not (folder / "README.md").exists()


@pytest.mark.parametrize("side", ["before", "after"])
def test_figure_that_was_taken_from_one_side_is_told(side, folder):
    change(folder, f"metrics_{side}", f"{side}_perplexity")
    with pytest.raises(ValueError, match=f"lacks `{side}_perplexity` in `metrics_{side}`"):
        write_card(folder)


def test_recovery_is_told_by_the_figure_that_it_was_judged_by(folder):
    report = json.loads((folder / "pruning_report.json").read_text())
    report["arguments"]["training_args"] = {"metric_for_best_model": "eval_accuracy"}
    report["recovery"]["metrics"] |= {"before_accuracy": 0.8125, "after_accuracy": 0.875}
    (folder / "pruning_report.json").write_text(json.dumps(report))
    assert "; held-out accuracy 0.8125 before, 0.875 after. The recovered weights were kept." in write_card(folder).read_text()


def test_a_change_of_speed_within_the_spread_of_the_timings_is_no_figure(folder):
    report = json.loads((folder / "pruning_report.json").read_text())
    for name, before, after in (
        ("prefill", (90.0, 100.0, 110.0), (120.0, 130.0, 140.0)),
        ("decode", (2.0, 4.0, 9.0), (7.0, 8.0, 9.5)),
    ):
        for side, speeds in (("before", before), ("after", after)):
            key = f"{name}_tokens_per_second"
            report["latency"][side] |= dict(zip((f"{key}_min", key, f"{key}_max"), speeds, strict=True))
    (folder / "pruning_report.json").write_text(json.dumps(report))
    text = write_card(folder).read_text()
    assert "| Prefill, tokens/s | 100.0 | 130.0 | +30.0 % |" in text
    assert "| Decode, tokens/s | 4.0 | 8.0 | unclear |" in text
    assert "A change is unclear where" in text
    assert "how the speed changed" in ending(str(folder))
    report["latency"]["after"] |= {f"decode_tokens_per_second_{edge}": 9.4 for edge in ("min", "max")}
    (folder / "pruning_report.json").write_text(json.dumps(report))
    assert "unclear" not in write_card(folder).read_text()


@pytest.mark.parametrize(
    ("kept", "sentence"),
    [
        ("recovered", "No compensation: until recovery, the remaining weights were those of the base model."),
        ("unrecovered", "No compensation: the remaining weights are those of the base model."),
    ],
)
def test_weights_are_the_base_models_only_where_none_were_trained(kept, sentence, folder):
    change(folder, "arguments", "compensation", to="none")
    change(folder, "recovery", "kept", to=kept)
    assert f"- {sentence}\n" in write_card(folder).read_text()
    change(folder, "recovery")
    assert "- No compensation: the remaining weights are those of the base model.\n" in write_card(folder).read_text()


@pytest.mark.parametrize(
    ("logged", "sentence"),
    [
        ([1, 2, 3, 4], "4 rounds; parameters after each: 9,900, 9,800, 9,700, 9,600."),
        ([2, 4], "4 rounds; parameters after rounds 2, 4: 9,800, 9,600."),
        ([3], "4 rounds; parameters after round 3: 9,700."),
        ([], "4 rounds."),
    ],
)
def test_rounds_are_those_of_the_run_however_many_were_logged(logged, sentence, folder):
    history = [{"parameters": 10_000 - 100 * step, "step": step} for step in logged]
    state = {"global_step": 4, "log_history": [{"eval_loss": 3.0, "step": 1}, *history]}
    (folder / "pruner_state.json").write_text(json.dumps(state))
    assert f"- {sentence}\n" in write_card(folder).read_text()


def of_magnitude(folder: Path) -> None:
    """Makes the run one of the criterion `magnitude` with a uniform layout and without repair."""
    plan = json.loads((folder / "pruning_plan.json").read_text())
    (folder / "pruning_plan.json").write_text(json.dumps(plan | {"criterion": "magnitude", "criterion_args": {}}))
    change(folder, "layout", to="uniform")
    change(folder, "arguments", "allocation", to="proportional")
    change(folder, "arguments", "compensation", to="none")


def test_data_that_no_score_came_from_are_not_said_to_have_judged_the_units(folder):
    of_magnitude(folder)
    text = write_card(folder).read_text()
    assert "scored on" not in text and "fitted to" not in text
    assert "drawn with seed 7; not used for the scores.\n" in text
    change(folder, "arguments", "compensation", to="bias")
    assert "- The compensation was fitted to `Salesforce/wikitext:train`; what" in write_card(folder).read_text()
    change(folder, "arguments", "allocation", to="auto")
    assert "- The widths and the compensation were fitted to `Salesforce/wikitext:train`; what" in write_card(folder).read_text()
    change(folder, "calibration")
    text = write_card(folder).read_text()
    assert "fitted to" not in text and "Calibration: none; the criterion reads weights only.\n" in text


@pytest.mark.parametrize(
    ("allocation", "samples", "share"),
    [
        ("proportional", None, "Every layer lost the same share."),
        ("auto", None, "the share of a kind follows the measured loss of cutting it in all layers."),
        ("loss_curves", 4, "the share of a kind follows the measured loss of cutting it in all layers (4 sequences)."),
        ("scores", None, "the share of a kind follows its scores."),
    ],
)
def test_shares_of_a_uniform_layout_are_told_as_they_came_about(allocation, samples, share, folder):
    of_magnitude(folder)
    change(folder, "arguments", "allocation", to=allocation)
    change(folder, "arguments", "num_allocation_samples", to=samples or 0)
    assert f" {share}\n" in write_card(folder).read_text()
    sizes = json.loads((folder / "pruning_report.json").read_text())["sizes"]
    change(folder, "sizes", to={key: size for key, size in sizes.items() if key.endswith("ffn")})
    assert "parameters outside the embeddings. Every layer lost the same share.\n" in write_card(folder).read_text()


def test_only_kinds_that_lost_units_are_said_to_be_cut(folder):
    sizes = json.loads((folder / "pruning_report.json").read_text())["sizes"]
    whole = {key: [size[0], size[0] if key.endswith("heads") else size[1]] for key, size in sizes.items()}
    change(folder, "sizes", to=whole)
    assert "Whole units were cut out (FFN neurons), so" in write_card(folder).read_text()


@pytest.mark.parametrize("source", ["data/mytext", "./data", "../data", "./data/mytext", "/data/mytext", "~/mytext"])
def test_local_folders_are_no_data_sets_of_the_hub(source, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "mytext").mkdir(parents=True)
    change(folder, "calibration", "source", to=f"{source}:train")
    text = write_card(folder).read_text()
    assert ModelCard(text).data.datasets is None
    assert f"Calibration: `{source}:train`" in text


def test_what_was_not_measured_is_said_and_no_figure_invented(folder):
    for name in ("metrics_before", "metrics_after", "evaluation", "latency", "size_on_disk_before", "self_check", "recovery"):
        change(folder, name)
    change(folder, "calibration")
    change(folder, "base_model")
    text = write_card(folder).read_text()
    card = ModelCard(text)
    assert card.data.eval_results is None
    assert card.data.base_model is None and card.data.license is None and card.data.datasets is None
    for sentence in (
        "Quality was measured neither before nor after pruning.",
        "Speed was not measured.",
        "| Weights on disk, MB | not measured | 70.6 |",
        "was not reloaded",
        "No training after the cut.",
        "a base model that the run did not name",
        "licence was not known",
        "Calibration: none",
    ):
        assert text.count(sentence) == 1
    assert "## Speed" not in text and "## Before and after" not in text


def test_an_accuracy_is_a_percentage_and_its_change_in_points(folder):
    change(folder, "metrics_before", to={"before_accuracy": 0.9, "before_loss": 0.5})
    change(folder, "metrics_after", to={"after_accuracy": 0.85, "after_loss": 0.6})
    text = write_card(folder).read_text()
    assert "| Accuracy | 90.0 % | 85.0 % | -5.0 points |" in text and "| Loss | 0.5000 | 0.6000 | +20.0 % |" in text


def test_figures_that_are_no_numbers_stay_out_of_the_metadata(folder):
    change(folder, "metrics_after", "after_perplexity", to=float("inf"))
    text = write_card(folder).read_text()
    names = {result.metric_name for result in ModelCard(text).data.eval_results}
    assert "perplexity, base model before pruning" in names
    assert "perplexity, after pruning" not in names
    assert "| Perplexity | 21.50 | inf |" in text


@pytest.mark.parametrize(
    ("architecture", "auto", "tag"),
    [
        ("LlamaForCausalLM", "AutoModelForCausalLM", "text-generation"),
        ("BertForSequenceClassification", "AutoModelForSequenceClassification", "text-classification"),
        ("BertLMHeadModel", "AutoModelForCausalLM", "text-generation"),
        ("BertForNextSentencePrediction", "AutoModelForNextSentencePrediction", None),
        ("BertModel", "AutoModel", "feature-extraction"),
    ],
)
def test_stock_class_is_loaded_by_its_auto_class(architecture, auto, tag, folder):
    config = json.loads((folder / "config.json").read_text())
    del config["auto_map"]
    (folder / "config.json").write_text(json.dumps(config | {"architectures": [architecture]}))
    (folder / "tokenizer_config.json").unlink()
    text = write_card(folder).read_text()
    assert f'from transformers import {auto}\n\nmodel = {auto}.from_pretrained("cria-small")\n```' in text
    assert "trust_remote_code" not in text
    assert ModelCard(text).data.pipeline_tag == tag


# ---- a README.md that is there already


THEIRS = """---
license: mit
tags:
- mine
- cria
base_model: old/base
library_name: sentence-transformers
pipeline_tag: sentence-similarity
thumbnail: image.png
model-index:
- name: theirs
  results:
  - task:
      type: text-classification
    dataset:
      name: SST-2
      type: sst2
    metrics:
    - type: accuracy
      value: 0.9
---

# My encoder

Why I made it.
"""


def test_existing_readme_is_updated_and_not_overwritten(folder):
    (folder / "README.md").write_text(THEIRS)
    first = write_card(folder).read_text()
    assert "# My encoder\n\nWhy I made it.\n" in first
    assert "# cria-small\n" not in first
    data = ModelCard(first).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "sentence-transformers", "sentence-similarity")
    assert data.thumbnail == "image.png"
    assert data.tags == ["mine", "cria", "pruned", "structured-pruning", "hf_spectral_prune"]
    assert data.base_model == "someone/small-llama", "the run knows what it has pruned"
    assert [result.metric_value for result in data.eval_results] == [0.9, 3.1781, 3.0681, 24.0, 21.5]

    # Text behind our section stays behind it, figures are replaced and not added.
    (folder / "README.md").write_text(first + "\n## Thanks\n\nTo all.\n")
    change(folder, "metrics_after", "after_perplexity", to=25.0)
    second = write_card(folder).read_text()
    assert second.index("Why I made it.") < second.index("## What was removed") < second.index("## Thanks")
    assert [result.metric_value for result in ModelCard(second).data.eval_results] == [0.9, 3.1781, 3.0681, 25.0, 21.5]
    assert second.count("## What was removed") == 1


LINES = st.lists(
    st.sampled_from(["", "# Title", "text — ünïcode", "```\n# not a title\n```", "| a | b |", "---", "{{ x }}", "<!-- note -->"])
)
METADATA = st.fixed_dictionaries(
    {},
    optional={
        "license": st.sampled_from(["mit", "other"]),
        "tags": st.sampled_from([["a", "cria"], "one", []]),
        "language": st.sampled_from(["de", ["de", "en"]]),
        "base_model": st.sampled_from(["a/b", ["a/b", "c/d"]]),
        "extra": st.sampled_from([1, {"a": ["b"]}, None]),
    },
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=LINES, metadata=METADATA, carriage=st.booleans())
def test_any_readme_keeps_its_text_and_is_settled_after_one_update(lines, metadata, carriage):
    saved = read_folder(HERE.parent / "folder")
    text = "\n".join(lines)
    # YAML is a superset of JSON. Text that begins with a rule needs a block before it, or it is taken for metadata itself.
    theirs = f"---\n{json.dumps(metadata)}\n---\n{text}" if metadata or "---" in lines else text
    if carriage:
        theirs = theirs.replace("\n", "\r\n")
    before = read_card(theirs)
    once = build_card(saved, "name", before)
    after = read_card(once)
    assert after.own_text == before.own_text
    assert build_card(saved, "name", after) == once
    for key in ("license", "language", "extra"):
        assert after.metadata.get(key) == (metadata.get(key) or {"license": "apache-2.0", "language": ["en"]}.get(key))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("---\nlicense: [\n---\n", "metadata of `{file}` cannot be read"),
        ("---\n- a\n- b\n---\n", "metadata of `{file}` cannot be read"),
        ("---\nmodel-index: 3\n---\n", "metadata of `{file}` cannot be read"),
        ("<!-- end of cria card -->", "`{file}` has 0 begin and 1 end marks"),
        ("<!-- cria card: x --> <!-- cria card: x --> <!-- end of cria card -->", "`{file}` has 2 begin and 1 end marks"),
        ("<!-- end of cria card --> <!-- cria card: x -->", "`{file}` has 1 begin and 1 end marks"),
    ],
)
def test_readme_that_cannot_be_updated_is_told_and_kept(text, words, folder, capsys):
    file = folder / "README.md"
    file.write_text(text)
    assert main(["card", str(folder)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words.format(file=file) in line
    assert file.read_text() == text
    # The same before a run that would have to keep it.
    words = ["--output_dir", str(folder), "--overwrite_output_dir", "--model_name_or_path", "/nowhere"]
    assert main(["prune", *words]) == 2
    assert str(file) in capsys.readouterr().err


def test_readme_in_another_encoding_is_told(folder, capsys):
    (folder / "README.md").write_bytes("Größe".encode("latin-1"))
    assert main(["card", str(folder)]) == 2
    assert f"`{folder / 'README.md'}` is not UTF-8 (byte 2)" in capsys.readouterr().err


def test_saving_writes_the_card_and_keeps_the_text_of_the_one_it_replaces(tokenizer, tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    tiny_model().save_pretrained(base)
    (base / "README.md").write_text("---\nlicense: cc-by-4.0\nlanguage: de\ntags: [theirs]\n---\n# Base\n")
    out.mkdir()
    (out / "README.md").write_text("My notes.\n")
    options = {"target_scope": "prunable", "round_to": 4, "min_ffn_units": 4, "disable_tqdm": True, "self_check": False}
    args = SpectralPruningArguments(output_dir=str(out), overwrite_output_dir=True, **options)
    pruner = SpectralPruner(type(tiny_model()).from_pretrained(base), args, [random_batch(4, 32)], None, tokenizer)
    with pytest.raises(ValueError, match=r"save_model\(\)"):
        pruner.create_model_card()
    pruner.prune()
    pruner.save_model()
    text = (out / "README.md").read_text()
    data = ModelCard(text).data
    assert (data.license, data.language, data.base_model) == ("cc-by-4.0", "de", None)
    assert "theirs" not in data.tags
    assert "My notes." in text and "# out\n" in text
    assert "A **Cria**: `base`" in text and str(tmp_path) not in text
    assert pruner.create_model_card(base_model="someone/base") == out / "README.md"
    assert ModelCard.load(out / "README.md").data.base_model == "someone/base"


# ---- the base model


def test_base_model_is_named_by_its_place_in_the_cache_and_never_guessed(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--someone--small-llama" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "README.md").write_text("---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\nbase_model: x/y\n---\n")
    carried = {"license": "other", "license_name": "mine", "license_link": "LICENSE"}
    named = {"name": "someone/small-llama", "hub_id": "someone/small-llama"}
    assert base_model_facts(str(snapshot)) == {**named, **carried}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert base_model_facts("someone/small-llama") == named
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone" / "llama").mkdir(parents=True)
    assert base_model_facts("gone/llama") == {"name": "llama", "hub_id": None}
    (tmp_path / "gone" / "llama").rmdir()
    assert base_model_facts("gone/llama") == {"name": "llama", "hub_id": None}, "a folder that has gone is no repo"
    assert base_model_facts("") == base_model_facts(None) == {"name": None, "hub_id": None}
    (snapshot / "README.md").write_text("---\n: [\n---\n")
    assert base_model_facts(str(snapshot)) == named


def test_card_command_names_file_and_takes_what_the_run_could_not_know(folder, capsys):
    change(folder, "base_model")
    assert main(["card", str(folder), "--base_model", "someone/else", "--name", "me/it"]) == 0
    assert capsys.readouterr().out.strip() == f"Wrote {folder / 'README.md'}"
    text = (folder / "README.md").read_text()
    assert "base_model: someone/else\nbase_model_relation: finetune\n" in text
    assert "# me/it\n" in text
    assert main(["card", str(folder), "--nam", "x"]) == 2
    assert "`--name`" in capsys.readouterr().err
    for words, message in ([], "There is no folder"), (["/nowhere"], "not a folder"), ([str(folder.parent)], "`config.json`"):
        assert main(["card", *words]) == 2
        assert message in capsys.readouterr().err
    (folder / "pruning_plan.json").write_text("{}")
    assert main(["card", str(folder)]) == 2
    assert "not a pruning plan" in capsys.readouterr().err


# ---- text of others

HOSTILE = "a`b\n# <script>alert(1)</script> | [c](javascript:d) <!-- end of cria card -->\n```\n---"


def outside_code(text: str) -> str:
    """The text without its code: spans, blocks and the metadata."""
    text = re.sub(r"^---.*?^---$", "", text, count=1, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"(?<![`\\])(`+)(?!`).+?(?<!`)\1(?!`)", "", text)


def test_text_of_others_stands_for_itself(folder):
    saved = read_folder(folder)
    for names in (("calibration", "source"), ("evaluation", "source"), ("machine", "system"), ("machine", "accelerator")):
        change(folder, *names, to=HOSTILE)
    change(folder, "versions", to={"torch": HOSTILE})
    facts = {"name": HOSTILE, "license": "other", "license_name": HOSTILE, "license_link": f"https://x.y/{HOSTILE}"}
    change(folder, "base_model", to=facts)
    plan = json.loads((folder / "pruning_plan.json").read_text())
    plan |= {"criterion": HOSTILE, "criterion_args": {HOSTILE: HOSTILE}, "notes": [HOSTILE]}
    (folder / "pruning_plan.json").write_text(json.dumps(plan))
    saved = read_folder(folder)
    text = build_card(saved, HOSTILE)
    plain = outside_code(text)
    assert "alert(1)" in plain  # it is told, as text
    assert not re.search(r"(?<!\\)<(?!!-- (end of )?cria card|https://)", plain)
    assert not re.search(r"\[c(?<!\\)\]\(", plain)
    assert len([line for line in plain.splitlines() if line.startswith("# ")]) == 1
    again = build_card(saved, HOSTILE, read_card(text))
    assert again == text
    row = next(line for line in text.splitlines() if line.startswith("| Parameters"))
    assert row.count(" | ") == 3
    assert compile(re.search(r"```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)[1], "card", "exec")


def test_only_addresses_of_the_web_are_links():
    data = ModelCardData(license="other", license_name="own", license_link="javascript:alert(1)")
    assert _licence_words(data).startswith("`own` (`javascript:alert(1)`).")
    data.license_link = "https://x.y/terms_(2).txt"
    assert _licence_words(data).startswith("`own` ([text](<https://x.y/terms_(2).txt>)).")


def test_the_weights_of_a_small_network_are_counted_in_kilobytes(folder):
    report = read_folder(folder).report
    report.size_on_disk_before, report.size_on_disk = 34_100, 25_900
    rows = [line.split() for line in before_after_table(report).splitlines()]
    assert ["|", "Weights", "on", "disk,", "kB", "|", "34.1", "|", "25.9", "|", "-24.0", "%", "|"] in rows


def test_a_base_models_card_is_read_within_bounds(tmp_path):
    levels = [f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * 10)}]" for level in range(1, 10)]
    bomb = "\n".join(["l0: &l0 [x]", *levels, "license: *l9"])
    for metadata, expected in (
        (bomb, {}),
        ("license: {a: b}\nlanguage: [en, 1, [x]]\nlicense_link: 5", {"language": ["en"]}),
        (f'license: mit\nlicense_name: "a\\n b"\nlanguage: {"x" * 1000}', {"license": "mit", "license_name": "a b"}),
        (f"license: mit\nx: {'y' * 2**21}", {}),
    ):
        (tmp_path / "README.md").write_text(f"---\n{metadata}\n---\ntext")
        found = base_model_facts(str(tmp_path))
        assert {key: found.get(key) for key in expected} == expected
        assert len(json.dumps(found)) < 500
    with pytest.raises(ValueError, match=r"the alias `\*l0` is not taken") as caught:
        read_card(f"---\n{bomb}\n---\nmine")
    assert len(str(caught.value)) < 200
    with pytest.raises(ValueError, match="is no id of a model"):
        base_model_facts(None, "a/b](x)")
