"""Scores in short: they are the scores, the cut lies between them, and a resumed run keeps those of all its rounds."""

from __future__ import annotations

import json

import pytest
import scipy.linalg
import torch
from conftest import random_batch, tiny_model
from hypothesis import given
from hypothesis import strategies as st

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.calibration import collect_moments
from hf_spectral_prune.criteria import make_criterion, score_units
from hf_spectral_prune.models.families import unit_groups
from hf_spectral_prune.planning import choose_units, scores_from_json, scores_to_json, summarise
from hf_spectral_prune.surgery.plan import PruningPlan

BATCHES = [random_batch(4, 32, seed) for seed in range(4)]
numbers = st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: float(f"{value:.6g}"))


@given(st.lists(numbers, min_size=1, max_size=300), st.data())
def test_the_short_form_is_true_to_the_scores(values, data):
    scores = torch.tensor(values, dtype=torch.float64)
    kept = data.draw(st.integers(1, len(values)))
    (group,) = unit_groups(tiny_model(num_hidden_layers=1), ["ffn"])
    group = type(group)(**{**vars(group), "size": len(values)})
    plan = choose_units([group], {group.key: scores}, {group.key: kept}, 10**9, model_type="llama")
    (short,) = summarise({group.key: scores}, plan).values()
    assert (short.units, short.kept) == (len(values), kept)
    assert list(short.scores) == sorted(short.scores)
    assert set(short.scores) <= set(values)
    assert (short.scores[0], short.scores[-1]) == (min(values), max(values))
    assert len(short.scores) == min(len(values), 65)
    if len(values) <= 65:
        assert list(short.scores) == sorted(values)
    assert (short.largest_removed is None) == (kept == len(values))
    if short.largest_removed is not None:
        assert short.largest_removed <= short.smallest_kept
        assert sum(value < short.smallest_kept for value in values) <= len(values) - kept
        assert sum(value > short.largest_removed for value in values) <= kept


def test_they_are_read_as_they_were_written_and_stay_small():
    scores = {f"layers.{layer}.ffn": torch.rand(4096, dtype=torch.float64) * 10**-layer for layer in range(30)}
    kept = {key: tuple(range(3000)) for key in scores}
    plan = PruningPlan("llama", dict.fromkeys(scores, 4096), kept, 10, 5)
    spectrum = {key: {"spectrum": torch.rand(24)} for key in scores}
    rounds = [summarise(scores, plan, spectrum if index == 0 else None) for index in range(20)]
    text = scores_to_json(rounds, "spectral")
    again = scores_from_json(text)
    assert again[0] == rounds[0] and again[-1] == rounds[-1]
    assert all(len(group.scores) == 9 for group in again[7].values())
    assert again[7]["layers.3.ffn"].smallest_kept == rounds[7]["layers.3.ffn"].smallest_kept
    assert scores_to_json(again, "spectral") == text
    assert len(text) < 250_000


def make_pruner(folder, **fields) -> SpectralPruner:
    options = {"num_rounds": 4, "target_reduction": 0.4, "target_scope": "prunable", "round_to": 4, "min_ffn_units": 4}
    options |= {"compensation": "none"}
    args = SpectralPruningArguments(output_dir=str(folder), disable_tqdm=True, self_check=False, **options | fields)
    return SpectralPruner(tiny_model(), args, BATCHES)


def test_a_resumed_run_keeps_the_scores_of_all_its_rounds(tmp_path):
    whole = make_pruner(tmp_path / "out", save_strategy="steps").prune()
    again = make_pruner(tmp_path / "again").prune(resume_from_checkpoint=tmp_path / "out" / "checkpoint-2")
    assert len(whole.scores) == len(again.scores) == 4
    assert scores_to_json(again.scores, "spectral") == scores_to_json(whole.scores, "spectral")


def test_the_saved_file_has_the_cut_of_every_round(tmp_path):
    pruner = make_pruner(tmp_path / "out")
    output = pruner.prune()
    pruner.save_model()
    payload = json.loads((tmp_path / "out" / "pruning_scores.json").read_text())
    assert payload["criterion"] == "spectral" and len(payload["rounds"]) == 4
    for key, kept in output.plan.kept.items():
        assert [groups[key]["kept"] for groups in payload["rounds"]][-1] == len(kept)
        sizes = [groups[key]["units"] for groups in payload["rounds"]]
        assert sizes == [output.plan.sizes[key], *(groups[key]["kept"] for groups in payload["rounds"][:-1])]
        assert payload["rounds"][0][key]["spectrum"] and not payload["rounds"][1][key]["spectrum"]


@pytest.mark.parametrize("options", [{}, {"modes": 5}, {"modes": 5, "aggregate": "edge"}])
def test_the_spectrum_has_the_leading_generalised_eigenvalues_of_the_two_graphs(options, monkeypatch):
    from hf_spectral_prune.criteria import spectral

    graphs = []
    make = spectral.knn_graph
    monkeypatch.setattr(spectral, "knn_graph", lambda *args: graphs.append(make(*args)) or graphs[-1])
    model = tiny_model(num_hidden_layers=1)
    groups = unit_groups(model, ["ffn"])
    moments = collect_moments(model, groups, BATCHES, progress=False)
    found: dict = {}
    criterion = make_criterion("spectral", {"num_neighbors": 4, **options})
    scores = score_units(model, groups, criterion, moments, diagnostics=found, progress=False)
    before, after = graphs[0].laplacian(), graphs[1].laplacian()
    shifted = after + 1e-3 * after.diagonal().mean() * torch.eye(len(after), dtype=after.dtype)
    expected = sorted(scipy.linalg.eigh(before.numpy(), shifted.numpy(), eigvals_only=True), reverse=True)
    spectrum = found["layers.0.ffn"]["spectrum"]
    assert len(spectrum) == options.get("modes", 24)
    assert spectrum.tolist() == pytest.approx(expected[: len(spectrum)], rel=1e-6, abs=1e-9)
    # Nobody who does not ask pays for it, and the scores do not depend on it.
    assert torch.equal(score_units(model, groups, criterion, moments, progress=False)["layers.0.ffn"], scores["layers.0.ffn"])


def test_the_growth_of_the_peak_is_part_of_the_peak():
    report = make_pruner("unused").prune().report
    growth = report["peak_memory_growth"]
    assert set(growth) == {"start", *report["timings"]}
    assert all(value >= 0 for places in growth.values() for value in places.values())
    assert growth["start"]["host"] <= sum(places["host"] for places in growth.values()) <= report["peak_memory"]["host"] * 1.01
