"""Several targets from one run, scores that are handed from run to run, and targets in bytes."""

from __future__ import annotations

import copy
import json
from itertools import pairwise

import pytest
import torch
from conftest import refused, tiny_model

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.cli.prune import _with_several_targets
from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.models.families import unit_groups
from hf_spectral_prune.planning import Limits, parameters_after
from hf_spectral_prune.planning.allocate import within_sizes
from hf_spectral_prune.saving.scores_file import SharedScores
from hf_spectral_prune.studies.targets import prune_to_targets

TARGETS = [0.4, 0.1, 0.25]


def arguments(**fields) -> SpectralPruningArguments:
    defaults = {"target_scope": "prunable", "criterion": "energy", "round_to": 4, "disable_tqdm": True, "self_check": False}
    return SpectralPruningArguments(**{"min_ffn_units": 4} | defaults | fields)


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
def test_targets_of_one_run_are_nested_saved_and_compared(layout, batches, tmp_path, monkeypatch):
    scored = []
    monkeypatch.setattr(
        SpectralPruner, "_score", lambda self, *args, own=SpectralPruner._score: scored.append(1) or own(self, *args)
    )
    said = []
    monkeypatch.setattr("hf_spectral_prune.pruner.samples_if_any", lambda *given: said.append(given) or {})
    model, args = tiny_model(), arguments(target_reductions=TARGETS, output_dir=str(tmp_path / "out"), layout=layout)
    alone = SpectralPruner(copy.deepcopy(model), arguments(target_reduction=0.1, layout=layout), batches, batches).prune()
    scored.clear()
    said.clear()
    outputs = prune_to_targets(model, args, batches, batches)
    assert len(scored) == 1
    assert len(said) == 1 + len(TARGETS)  # the dense model speaks once
    assert outputs[0].plan.kept == alone.plan.kept  # the first is what a run by itself gives
    torch.testing.assert_close(outputs[0].model.state_dict(), alone.model.state_dict())
    for wider, smaller in pairwise(outputs):
        assert all(set(smaller.plan.kept[key]) <= set(kept) for key, kept in wider.plan.kept.items())
        assert smaller.plan.kept != wider.plan.kept
    assert outputs[-1].model is model
    for name, output in zip(("0.1", "0.25", "0.4"), outputs, strict=True):
        folder = tmp_path / "out" / f"reduction-{name}"
        report = json.loads((folder / "pruning_report.json").read_text())
        assert report["parameters_after"] == num_parameters(output.model) and (folder / "README.md").is_file()
    table = (tmp_path / "out" / "targets.md").read_text().splitlines()
    assert len(table) == 6 and "perplexity" in table[0] and f"{num_parameters(model):,}" in table[-1]
    assert (tmp_path / "out" / "targets.png").stat().st_size > 5000


def test_what_a_bound_takes_is_given_back_where_it_hurts_most():
    groups = [group for group in unit_groups(tiny_model()) if group.kind == "ffn"]
    limits, size, cost = Limits(round_to=4), groups[0].size, groups[0].parameters_per_unit
    now = 100_000
    first, second, third = (group.key for group in groups)
    sizes, most = {first: size, second: 8, third: 12}, {first: size - 8, second: 16, third: 16}
    goal = parameters_after(groups, sizes, now)
    damage = {key: torch.arange(size + 1) * slope for key, slope in ((first, 9.0), (second, 1.0), (third, 3.0))}
    found = within_sizes(groups, now, goal, limits, sizes, most, damage)
    assert found == {first: size - 8, second: 12, third: 16}
    assert parameters_after(groups, found, now) == goal and cost > 0
    assert within_sizes(groups, now, goal, limits, sizes, most) == {first: size - 8, second: 8, third: 12}


def test_scores_of_a_file_give_the_run_that_would_have_made_them(batches, tmp_path, monkeypatch):
    model, file = tiny_model(), str(tmp_path / "scores.npz")
    first = arguments(target_reduction=0.1, layout="per_layer", compensation="least_squares", save_scores=file)
    SpectralPruner(copy.deepcopy(model), first, batches).prune()
    given = {"layout": "per_layer", "compensation": "least_squares", "target_reduction": 0.3}
    expected = SpectralPruner(copy.deepcopy(model), arguments(**given), batches).prune()
    monkeypatch.setattr(SpectralPruner, "_score", lambda *args: pytest.fail("scored again"))
    found = SpectralPruner(copy.deepcopy(model), arguments(scores=file, **given), batches).prune()
    assert found.plan.kept == expected.plan.kept
    torch.testing.assert_close(found.model.state_dict(), expected.model.state_dict())

    def read(network, data, **fields):
        return lambda: SpectralPruner(network, arguments(**given | {"scores": file} | fields), data).prune()

    refused(read(copy.deepcopy(model), batches, criterion="random"), "`criterion` was 'energy'", "'random' now")
    refused(read(copy.deepcopy(model), batches[:1]), "`calibration_dataset`")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.embed_tokens.weight[5, 0] += 1
    refused(read(other, batches), "`weights`")
    (tmp_path / "broken.npz").write_bytes(b"PK no scores")
    refused(lambda: SharedScores.load(tmp_path / "broken.npz"), "holds no scores of a run")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        SharedScores.load(tmp_path / "none.npz")


@pytest.mark.parametrize("context", [0, 512])
@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
def test_a_target_in_bytes_counts_weights_and_cache(context, layout, batches):
    model = tiny_model()
    config = model.config

    def taken(network) -> int:
        groups = sum(layer.self_attn.k_proj.weight.shape[0] for layer in network.model.layers)
        return 4 * (num_parameters(network) + 2 * groups * context)

    before = taken(model)
    goal = 0.8 * before
    args = arguments(
        target_bytes=goal, target_context=context, layout=layout, allocation="scores" if layout == "per_layer" else "auto"
    )
    output = SpectralPruner(model, args, batches).prune()
    units = 4 * 4 * 3 * config.hidden_size * (config.num_hidden_layers if layout == "uniform" else 1)
    # A stock class of 8 query heads takes 4, 2 or 1 key/value groups, and FFN neurons fill what is left.
    heads = 2 * 4 * 2 * 4 * context * config.num_hidden_layers if layout == "uniform" else 2 * 4 * 4 * context
    assert goal - 2 * max(units, heads) < taken(output.model) <= goal
    assert output.report.target_reduction == pytest.approx(0.2, abs=1e-3)
    assert any(f"{taken(output.model):,} of {before:,} stay" in note for note in output.report.notes)


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"target_reductions": [0.1, 0.1]}, ["`target_reductions`", "each once"]),
        ({"target_reductions": [0.1, 1.0]}, ["`target_reductions`", "between 0 and 1"]),
        ({"target_reductions": [0.1, 0.2], "num_rounds": 2}, ["`target_reductions`", "one round"]),
        ({"scores": "x.npz", "num_rounds": 2}, ["`scores`", "one round"]),
        ({"target_bytes": -1.0}, ["`target_bytes` is -1.0"]),
        ({"target_bytes": 1e6, "target_reductions": [0.1]}, ["Give one of them"]),
        ({"target_context": 10}, ["`target_context`", "`target_bytes`"]),
    ],
)
def test_targets_that_cannot_work_are_told(fields, parts):
    refused(lambda: SpectralPruningArguments(**fields), *parts)


def test_targets_in_the_wrong_place_are_told(batches):
    refused(lambda: SpectralPruner(tiny_model(), arguments(target_reductions=[0.1]), batches), "`prune_to_targets`")
    refused(lambda: prune_to_targets(tiny_model(), arguments(target_reductions=[0.1]), batches), "`output_dir`")
    refused(lambda: SpectralPruner(tiny_model(), arguments(target_bytes=1e9), batches).prune(), "takes", "already")


def test_the_command_line_takes_several_fractions():
    words = ["m", "--target_reduction", "0.1", "0.2", "--units", "ffn"]
    assert _with_several_targets(words) == ["m", "--target_reductions", "0.1", "0.2", "--units", "ffn"]
    assert _with_several_targets(["--target_reduction", "0.1", "--seed", "1"]) == ["--target_reduction", "0.1", "--seed", "1"]


def test_a_file_of_scores_takes_the_place_of_no_other_file(tmp_path, batches):
    kept = tmp_path / "config.json"
    kept.write_text("{}")
    refused(lambda: SpectralPruner(tiny_model(), arguments(save_scores=str(kept)), batches), "`save_scores`", "not replaced")
    refused(lambda: SpectralPruner(tiny_model(), arguments(save_scores=str(tmp_path)), batches), "`save_scores`", "is a folder")
    assert kept.read_text() == "{}"
    for _ in range(2):  # its own it may
        SpectralPruner(tiny_model(), arguments(save_scores=str(tmp_path / "scores.npz"), target_reduction=0.2), batches).prune()
