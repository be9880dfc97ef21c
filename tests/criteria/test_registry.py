"""What every criterion promises: its order of units is nobody's, its options are checked, and packages can add to it."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest
import torch
from conftest import random_batch, tiny_encoder, tiny_model
from dense import scores_of

from hf_spectral_prune.calibration import collect_moments, unit_channels
from hf_spectral_prune.criteria import (
    CRITERIA,
    collect_statistics,
    known_criteria,
    make_criterion,
    plugins,
    score_units,
    select_statistics,
)
from hf_spectral_prune.models.families import family_of, module_of, unit_groups

# Every criterion but the random one, with the options that make another computation of it.
FORMS = [
    ("activation", {}),
    ("activation_weights", {}),
    ("energy", {}),
    ("fisher", {}),
    ("fisher", {"samples": "sequence"}),
    ("fluctuation", {}),
    ("integrated_gradients", {"num_steps": 3, "max_steps": 9, "num_sequences": 4}),
    ("magnitude", {}),
    ("magnitude", {"order": 1}),
    ("magnitude", {"order": "max"}),
    ("magnitude", {"order": "peak_to_peak", "matrices": "producers"}),
    # Sensitivity is estimated with random signs, which no permutation follows.
    ("ndi", {"r": 0.0}),
    ("obs", {}),
    ("obs", {"iterative": True}),
    ("spectral", {}),
    ("spectral", {"output_form": "contributions", "weighting": "gaussian"}),
    ("spectral", {"signals": "loss"}),
    ("spectral", {"modes": 6, "aggregate": "edge"}),
    ("taylor", {}),
    ("taylor", {"aggregate": "vector"}),
    ("taylor", {"aggregate": "vector", "weights": "consumer"}),
    ("taylor", {"order": 2, "aggregate": "vector"}),
    ("taylor", {"order": 2}),
]


def test_the_forms_cover_the_registry():
    assert {name for name, _ in FORMS} | {"random"} == {
        "activation",
        "activation_weights",
        "energy",
        "fisher",
        "fluctuation",
        "integrated_gradients",
        "magnitude",
        "ndi",
        "obs",
        "random",
        "spectral",
        "taylor",
    }
    assert {name for name, _ in FORMS} | {"random"} <= set(CRITERIA)


@torch.no_grad()
def permute(model, group, order):
    """Puts unit order[i] at place i: rows of the producers, columns of the consumer."""
    row = family_of(model.config).kind(group.kind)
    for producer in row.producers:
        module = module_of(model, group.layer, producer.module)
        per_block = module.out_features // producer.num_blocks
        rows = unit_channels(order, per_block // group.size)
        index = torch.cat([rows + block * per_block for block in range(producer.num_blocks)])
        for value in (module.weight, module.bias):
            if value is not None:
                value.copy_(value[index])
    consumer = module_of(model, group.layer, row.consumer)
    consumer.weight.copy_(consumer.weight[:, unit_channels(order, group.channels_per_unit)])


def make(family):
    """A model and its batches, with the labels that an encoder's loss needs."""
    if family.startswith("modernbert"):
        labels = torch.tensor([0, 1, 1, 0])
        return tiny_encoder(family).double(), [{**random_batch(4, 24, seed), "labels": labels} for seed in (1, 2)]
    return tiny_model(family).double(), [random_batch(4, 24, 1), random_batch(4, 24, 2, padding="right")]


@pytest.mark.parametrize("family", ["llama", "modernbert-biases"])
@pytest.mark.parametrize(
    ("name", "options"), FORMS, ids=lambda value: str(value) if isinstance(value, str) else "-".join(map(str, value.values()))
)
def test_permuting_units_permutes_their_scores(name, options, family):
    model, batches = make(family)
    before = scores_of(model, batches, name, **options)
    orders = {}
    for group in unit_groups(model):
        orders[group.key] = torch.randperm(group.size, generator=torch.Generator().manual_seed(group.layer))
        permute(model, group, orders[group.key])
    after = scores_of(model, batches, name, **options)
    for key, order in orders.items():
        scale = float(before[key].abs().max())
        torch.testing.assert_close(
            after[key], before[key][order], rtol=1e-4, atol=1e-6 * scale, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weighting": "gaussian"},
        {"weighting": "binary"},
        {"input_form": "raw"},
        {"input_form": "centred"},
        {"output_form": "contributions"},
        {"output_form": "centred"},
        {"output_form": "standardised"},
        {"modes": 4},
        {"modes": 4, "aggregate": "edge"},
        {"num_neighbors": 1},
        {"num_neighbors": 1_000},
        {"signals": "loss"},
    ],
    ids=lambda options: "-".join(f"{name}={value}" for name, value in options.items()) or "default",
)
def test_spectral_is_finite_on_degenerate_layers(options):
    """Dead units, duplicates, one unit alone, a whole dead layer."""
    model = tiny_model(heads=(2, 1))
    with torch.no_grad():
        first, second, third = (layer.mlp for layer in model.model.layers)
        first.up_proj.weight[:6] = 0
        second.gate_proj.weight[8:16], second.up_proj.weight[8:16] = second.gate_proj.weight[:8], second.up_proj.weight[:8]
        third.up_proj.weight.zero_()
    for key, scores in scores_of(model, [random_batch(4, 16)], "spectral", **options).items():
        assert bool(torch.isfinite(scores).all()), key
        assert float(scores.min()) >= -1e-6 * max(float(scores.abs().max()), 1), key


def test_modes_may_be_a_share_of_the_channels():
    model, batches = tiny_model(), [random_batch(4, 16)]
    shares, numbers = (scores_of(model, batches, "spectral", modes=modes) for modes in (0.25, 6))
    # 24 neurons and 32 channels of value heads.
    assert all(torch.equal(shares[key], numbers[key]) for key in shares if key.endswith("ffn"))
    assert not torch.equal(shares["layers.0.heads"], numbers["layers.0.heads"])


@pytest.mark.parametrize(("name", "options"), FORMS, ids=str)
def test_every_criterion_is_finite_on_degenerate_layers(name, options):
    model = tiny_model(heads=(2, 1))
    with torch.no_grad():
        first, second, third = (layer.mlp for layer in model.model.layers)
        first.up_proj.weight[:6] = 0
        second.gate_proj.weight[8:16], second.up_proj.weight[8:16] = second.gate_proj.weight[:8], second.up_proj.weight[:8]
        third.up_proj.weight.zero_()
    scores = scores_of(model, [random_batch(4, 16)], name, **options)
    assert {key: len(value) for key, value in scores.items()} == {group.key: group.size for group in unit_groups(model)}


@pytest.mark.parametrize("name", ["fisher", "integrated_gradients", "taylor", "ndi"])
def test_statistics_follow_a_cut(name):
    """Analytic rounds score the units that are left from the statistics that were: what was gathered has a row per unit."""
    model = tiny_model()
    criterion, groups = make_criterion(name), unit_groups(model)
    batches = [random_batch(4, 16)]
    moments = collect_moments(model, groups, batches, progress=False)
    statistics = collect_statistics(model, groups, criterion, batches, moments, progress=False)
    kept = {group.key: torch.arange(0, group.size, 2) for group in groups}
    selected = select_statistics(statistics, kept)
    for group in groups:
        for label, value in statistics[group.key].items():
            assert len(value) == group.size
            assert torch.equal(selected[group.key][label], value[kept[group.key]])


def test_statistics_that_are_missing_are_told():
    model = tiny_model()
    with pytest.raises(ValueError, match="`collect_statistics`"):
        score_units(model, unit_groups(model), make_criterion("taylor"), progress=False)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("taylor", {"order": 3}, "`order` of `taylor` is 3. Choose one of 1, 2."),
        ("taylor", {"agregate": "vector"}, "Did you mean `aggregate`"),
        ("magnitude", {"order": "L2"}, "'peak_to_peak'"),
        ("integrated_gradients", {"num_sequences": 0}, "at least 1"),
        ("integrated_gradients", {"max_steps": 10}, "at least `num_steps`"),
        ("integrated_gradients", {"tolerance": 0.0}, "above 0"),
        ("obs", {"iterative": "yes"}, "type bool"),
        ("obs", {"ridge": 0.0}, "above 0"),
        ("obs", {"ridge": "big"}, "type float"),
        ("spectral", {"modes": "all"}, "type int or float or null"),
        ("spectral", {"modes": 0}, "at least 1, or a share"),
        ("spectral", {"modes": 2.5}, "at least 1, or a share"),
        ("spectral", {"num_neighbors": True}, "type int"),
        ("spectral", {"num_neighbors": 0}, "at least 1"),
        ("spectral", {"aggregate": "edge"}, "Set `modes`"),
        ("spectral", {"weighting": "cosine"}, "Choose one of 'inverse', 'gaussian', 'binary'"),
        ("energie", {}, "Did you mean `energy`"),
    ],
)
def test_options_are_checked_before_any_work(name, options, message):
    with pytest.raises(ValueError, match=message) as raised:
        make_criterion(name, options)
    assert "\n" not in str(raised.value)


PLUGIN = """
from dataclasses import dataclass
import torch
from hf_spectral_prune.criteria import Criterion

@dataclass(frozen=True)
class LastFirst(Criterion):
    scale: float = 1.0
    def score(self, data):
        return self.scale * torch.arange(data.group.size, dtype=torch.float64)

class Plain:
    pass

not_there = 3
"""


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Packages that offer criteria: one sound, others broken in every way."""
    (tmp_path / "plugin_criteria.py").write_text(PLUGIN)
    (tmp_path / "plugin_broken.py").write_text("import a_package_that_is_not_there\n")
    (tmp_path / "plugin_shouting.py").write_text("raise RuntimeError('one line\\nand another')\n")
    monkeypatch.syspath_prepend(tmp_path)
    points = [
        EntryPoint("last_first", "plugin_criteria:LastFirst", plugins.GROUP),
        EntryPoint("broken_import", "plugin_broken:Anything", plugins.GROUP),
        EntryPoint("broken_run", "plugin_shouting:Anything", plugins.GROUP),
        EntryPoint("broken_name", "plugin_criteria:Missing", plugins.GROUP),
        EntryPoint("no_criterion", "plugin_criteria:Plain", plugins.GROUP),
        EntryPoint("no_class", "plugin_criteria:not_there", plugins.GROUP),
        EntryPoint("energy", "plugin_broken:Energy", plugins.GROUP),
    ]
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point for point in points if point.group == group])
    yield
    CRITERIA.pop("last_first", None)
    for name in ("plugin_criteria", "plugin_broken"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("installed")
def test_a_packages_criterion_is_found_by_name_with_its_options():
    assert "last_first" in known_criteria()
    scores = scores_of(tiny_model(), [], "last_first", scale=2.0)
    assert scores["layers.0.heads"].tolist() == [0, 2, 4, 6]
    with pytest.raises(ValueError, match=r"`scales`.*Did you mean `scale`"):
        make_criterion("last_first", {"scales": 1})


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("broken_import", "a_package_that_is_not_there"),
        ("broken_run", "one line and another"),
        ("broken_name", "Missing"),
        ("no_criterion", "not a dataclass derived from"),
        ("no_class", "not a dataclass derived from"),
    ],
)
def test_a_broken_entry_point_is_told_when_it_is_asked_for(name, cause):
    with pytest.raises(ValueError, match=rf"`{name}`.*{cause}.*ninstall") as raised:
        make_criterion(name)
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("installed")
def test_a_broken_entry_point_disturbs_nobody_else():
    assert type(make_criterion("energy")).__module__.startswith("hf_spectral_prune")
    assert type(make_criterion("last_first")).__name__ == "LastFirst"
    with pytest.raises(ValueError, match="Did you mean `broken_import`"):
        make_criterion("broken_imports")
