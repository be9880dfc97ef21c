"""The regulariser: its value by hand, its symmetries, its gradient, what it does to signals, and its place in a Trainer."""

from __future__ import annotations

import pytest
import torch
from conftest import encoder_batch, random_batch, tiny_encoder, tiny_model
from differentiating import CHEAP, logged, unknown_family
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from training import make_trainer
from transformers import Trainer
from vision import image_batch, tiny_vision

from hf_spectral_prune import NDIRegularizedTrainerMixin, NDPArguments, NDPCallback, PruningSchedule, ndi_regularizer
from hf_spectral_prune.models.families import module_of, unit_groups
from hf_spectral_prune.studies.differentiation import model_regularizer, unit_signals

FORMS = ("energy", "modes")


class DiverseTrainer(NDIRegularizedTrainerMixin, Trainer):
    """A plain Trainer with the regulariser."""


def mixed_signals(count, channels, seed, sources=None):
    """(N, n) float64: channels that are mixtures of fewer independent sources."""
    generator = torch.Generator().manual_seed(seed)
    sources = torch.randn(count, sources or max(2, channels // 2), dtype=torch.float64, generator=generator)
    return sources @ torch.randn(sources.shape[1], channels, dtype=torch.float64, generator=generator)


def mean_square_correlation(signals, channels_per_unit=1):
    matrix = torch.corrcoef(signals.T)
    unit = torch.arange(len(matrix)) // channels_per_unit
    return float(matrix[unit[:, None] != unit].square().mean())


# ---- the value


@pytest.mark.parametrize("count", [200, 7], ids=["more positions than channels", "fewer"])
@pytest.mark.parametrize("channels_per_unit", [1, 3])
def test_energy_is_the_mean_squared_correlation_of_different_units(count, channels_per_unit):
    signals = mixed_signals(count, 12, 0) + torch.arange(12)
    expected = mean_square_correlation(signals, channels_per_unit)
    assert float(ndi_regularizer(signals, channels_per_unit)) == pytest.approx(expected, rel=1e-2)


def test_modes_by_hand():
    """R = [[1, .6, 0], [.6, 1, 0], [0, 0, 1]]: eigenvalues 1.6, 1, 0.4; above 1 there is 0.6^2, over 6 ordered pairs."""
    factor = torch.linalg.cholesky(torch.tensor([[1, 0.6, 0], [0.6, 1, 0], [0, 0, 1]], dtype=torch.float64))
    white = torch.linalg.qr(torch.randn(64, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    white = white - white.mean(dim=0)
    white = torch.linalg.qr(white)[0][:, :3]  # uncorrelated columns of mean 0
    signals = white @ factor.T
    assert float(ndi_regularizer(signals, form="modes")) == pytest.approx(0.36 / 6, rel=1e-3)
    assert float(ndi_regularizer(signals)) == pytest.approx(2 * 0.36 / 6, rel=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_copies_are_the_worst_and_independent_signals_nearly_free(form):
    signal = torch.randn(4_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    copies = signal * torch.tensor([1.0, -2.0, 0.5, 7.0, 3.0])
    highest = 1.0 if form == "energy" else 4 / 5
    assert float(ndi_regularizer(copies, form=form)) == pytest.approx(highest, abs=0.01)
    independent = torch.randn(4_000, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert 0 <= float(ndi_regularizer(independent, form=form)) < 3 / 4_000


# ---- properties


@settings(max_examples=25, deadline=None)
@given(
    units=st.integers(2, 6),
    width=st.integers(1, 3),
    count=st.integers(3, 30),
    form=st.sampled_from(FORMS),
    seed=st.integers(0, 999),
)
def test_order_and_scale_do_not_matter_and_the_gradient_follows(units, width, count, form, seed):
    """Permuted units: the same value, and the gradient permuted alike. Shifted, positively or negatively scaled: the same."""
    signals = mixed_signals(count, units * width, seed).requires_grad_()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(units, generator=generator)
    channels = (order[:, None] * width + torch.arange(width)).flatten()
    value = ndi_regularizer(signals, width, form)
    other = signals.detach()[:, channels].requires_grad_()
    permuted = ndi_regularizer(other, width, form)
    assert 0 <= float(value.detach()) <= 1
    torch.testing.assert_close(value, permuted, rtol=1e-6, atol=1e-9)
    (gradient,), (same,) = torch.autograd.grad(value, signals), torch.autograd.grad(permuted, other)
    assert bool(torch.isfinite(gradient).all())
    torch.testing.assert_close(gradient[:, channels], same, rtol=1e-4, atol=1e-8)
    moved = 3 * signals.detach() * torch.where(torch.rand(units * width, generator=generator) < 0.5, -1, 1) + 5
    torch.testing.assert_close(ndi_regularizer(moved, width, form), value.detach(), rtol=1e-6, atol=1e-9)


@settings(max_examples=10, deadline=None)
@given(form=st.sampled_from(FORMS), seed=st.integers(0, 999))
def test_optimised_alone_it_makes_units_less_correlated(form, seed):
    inputs = mixed_signals(200, 8, seed, sources=8).float()
    layer = nn.Linear(8, 6)
    with torch.no_grad():
        layer.weight.copy_(layer.weight[:1] + 0.2 * layer.weight)  # units that nearly repeat the first
    before = mean_square_correlation(layer(inputs).detach())
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        value = ndi_regularizer(layer(inputs), form=form)
        value.backward()
        assert float(layer.weight.grad.abs().sum()) > 0
        optimizer.step()
    assert mean_square_correlation(layer(inputs).detach()) < 0.2 * before


@pytest.mark.parametrize("form", FORMS)
def test_a_silent_unit_changes_nothing_and_silencing_one_does_not_pay(form):
    """A unit on its way to silence: the value stays between those with and without it, as it has the others' correlation."""
    signals = mixed_signals(500, 1, 0, sources=1) + mixed_signals(500, 6, 1, sources=6)
    with_silent = torch.cat([signals, torch.full((500, 2), 3.0, dtype=torch.float64)], dim=1)
    value = ndi_regularizer(signals, form=form)
    torch.testing.assert_close(ndi_regularizer(with_silent, form=form), value, rtol=1e-3, atol=0)
    copies = mixed_signals(500, 1, 0, sources=2).expand(-1, 4).clone()
    for factor in (1.0, 0.1, 0.01, 0.001):
        copies[:, 3] = factor * copies[:, 0]
        assert float(ndi_regularizer(copies, form=form)) > (0.98 if form == "energy" else 0.6)


@pytest.mark.parametrize("form", FORMS)
def test_dead_constant_and_equal_channels_have_finite_gradients(form):
    signals = mixed_signals(20, 6, 0).float()
    signals[:, 0], signals[:, 1], signals[:, 2] = 0.0, 4.0, signals[:, 3]
    signals.requires_grad_()
    ndi_regularizer(signals, form=form).backward()
    assert bool(torch.isfinite(signals.grad).all()) and float(signals.grad.abs().sum()) > 0


@pytest.mark.parametrize("shape", [(1, 6), (0, 6), (20, 1), (20, 3)])
def test_where_there_is_nothing_to_compare_it_is_zero(shape):
    signals = torch.randn(shape, requires_grad=True)
    value = ndi_regularizer(signals, shape[1])
    value.backward()
    assert float(value) == 0 and float(signals.grad.abs().sum()) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.randn(4, 5), 2), "multiple of `channels_per_unit`"),
        ((torch.randn(2, 4, 4),), "must be \\(positions, channels\\)"),
        ((torch.randn(4, 4), 0), "`channels_per_unit` \\(0\\)"),
        ((torch.randn(4, 4), 1, "mode"), "`energy`, `modes`"),
    ],
    ids=["unit", "shape", "zero", "form"],
)
def test_signals_that_cannot_be_are_told(arguments, message):
    with pytest.raises(ValueError, match=message):
        ndi_regularizer(*arguments)


# ---- in a model


def test_padding_does_not_count():
    model = tiny_encoder(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    groups = unit_groups(model)

    def value(batch):
        with unit_signals(model, groups) as signals:
            model(**batch)
        return model_regularizer(groups, signals, batch["attention_mask"])

    batch = random_batch(2, 12, padding="right")
    other = {name: tensor.clone() for name, tensor in batch.items()}
    other["input_ids"][~batch["attention_mask"].bool()] = 7
    torch.testing.assert_close(value(batch), value(other))
    assert not torch.allclose(value(batch), value(batch | {"attention_mask": torch.ones_like(batch["attention_mask"])}))


def families():
    choice = tiny_encoder(task="ForMultipleChoice")
    return {
        "llama": (tiny_model(), random_batch(padding="left")),
        "bert": (tiny_encoder(), random_batch(padding="right") | {"labels": torch.tensor([0, 1])}),
        "bert-choices": (choice, encoder_batch(choice, padding="right") | {"labels": torch.tensor([0, 1])}),
        "modernbert": (tiny_encoder("modernbert"), random_batch() | {"labels": torch.tensor([0, 1])}),
        "vit": (tiny_vision("vit"), image_batch(6)),
        "mlp": plain_network(),
    }


def plain_network():
    pytest.importorskip("torch_pruning")
    from hf_spectral_prune.models.torch_model import wrap

    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6), nn.ReLU())
    network.append(nn.Linear(6, 2))
    images = torch.randn(6, 1, 8, 8)
    return wrap(network, images[:1]), {"pixel_values": images, "labels": torch.arange(6) % 2}


@pytest.mark.parametrize("name", ["llama", "bert", "bert-choices", "modernbert", "vit", "mlp"])
def test_every_family_gets_a_gradient_and_its_loss_is_the_plain_one_plus_the_weighted_value(name, tmp_path):
    model, batch = families()[name]
    plain = make_trainer(model, tmp_path, rows=[])
    regularised = make_trainer(model, tmp_path, rows=[], cls=DiverseTrainer, options={"ndi_weight": 2.0})
    batch = batch | ({"labels": batch["input_ids"]} if name == "llama" else {})
    groups = unit_groups(model)
    for part in model.modules():  # dropout off, and still training
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    model.config.attention_probs_dropout_prob = model.config.attention_dropout = 0.0
    model.train()
    with unit_signals(model, groups) as signals:
        expected = plain.compute_loss(model, batch)
    value = model_regularizer(groups, signals, batch.get("attention_mask"))
    loss, outputs = regularised.compute_loss(model, batch, return_outputs=True)
    torch.testing.assert_close(loss, expected + 2 * value)
    assert outputs["logits"].shape[0] == len(batch["labels"])
    value.backward()
    for group in groups:
        path = {"llama": "mlp.up_proj", "bert": "intermediate.dense"}.get(name)
        if path is not None:
            gradient = module_of(model, group.layer, path).weight.grad
            assert bool(torch.isfinite(gradient).all()) and float(gradient.abs().sum()) > 0
    with torch.no_grad():
        torch.testing.assert_close(regularised.compute_loss(model.eval(), batch), plain.compute_loss(model, batch))


# ---- in a Trainer


@pytest.mark.parametrize(
    "fields", [{}, {"gradient_checkpointing": True}, {"bf16": True}], ids=lambda fields: next(iter(fields), "plain")
)
def test_training_makes_units_less_alike(fields, tmp_path):
    trainer = make_trainer(
        tiny_model(),
        tmp_path,
        cls=DiverseTrainer,
        options={"ndi_weight": 30.0},
        max_steps=15,
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        **fields,
    )
    trainer.train()
    values = list(logged(trainer, "ndi_regularizer").values())
    assert len(values) == 15 and sum(values[-3:]) < 0.8 * sum(values[:3])


def test_accumulated_micro_batches_weigh_as_one_batch(tmp_path):
    """Rows that are all the same: two micro-batches of 4 give the gradient of one batch of 4."""
    weights = []
    for accumulation in (1, 2):
        model = tiny_model()
        rows = [{"input_ids": ids} for ids in random_batch(4)["input_ids"]] * accumulation
        options = {"max_steps": 1, "gradient_accumulation_steps": accumulation, "optim": "sgd", "learning_rate": 0.1}
        trainer = make_trainer(
            model, tmp_path, rows=rows, cls=DiverseTrainer, options={"ndi_weight": 5.0}, max_grad_norm=0.0, **options
        )
        trainer._get_train_sampler = lambda dataset=None, rows=rows: torch.utils.data.SequentialSampler(rows)
        trainer.train()
        weights.append(model.state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=1e-6, msg=name)


def test_it_follows_a_model_that_is_cut_meanwhile(batches, tmp_path):
    args = NDPArguments(
        target_reduction=0.3, target_scope="prunable", round_to=4, num_rounds=2, criterion_args=CHEAP, disable_tqdm=True
    )
    callback = NDPCallback(args, batches, schedule=PruningSchedule("linear", start_step=0, end_step=4))
    trainer = make_trainer(tiny_model(), tmp_path, [callback], cls=DiverseTrainer)
    trainer.train()
    assert callback.plan is not None and list(logged(trainer, "ndi_regularizer")) == list(range(1, 7))


def test_weight_zero_is_the_plain_trainer(tmp_path):
    models = [tiny_model(), tiny_model()]
    make_trainer(models[0], tmp_path).train()
    make_trainer(models[1], tmp_path, cls=DiverseTrainer, options={"ndi_weight": 0.0}).train()
    assert all(torch.equal(one, other) for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True))


BAD = {
    "unknown family": (unknown_family, {}, {}, "`mamba` is not a known family"),
    "unknown kind": (tiny_model, {"ndi_units": ["channels"]}, {}, "`ffn`, `heads`"),
    "negative weight": (tiny_model, {"ndi_weight": -1.0}, {}, "not negative"),
    "not a number": (tiny_model, {"ndi_weight": float("nan")}, {}, "not negative"),
    "form": (tiny_model, {"ndi_form": "diagonal"}, {}, "`energy`, `modes`"),
    "compiled": (tiny_model, {}, {"torch_compile": True}, "`torch_compile` is on"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_regularised_is_told_before_any_step(case, tmp_path):
    build, options, fields, message = BAD[case]
    with pytest.raises(ValueError, match=message) as raised:
        make_trainer(build(), tmp_path, cls=DiverseTrainer, options=options, **fields)
    assert "\n" not in str(raised.value)


def test_signals_without_a_gradient_are_told(tmp_path):
    model = tiny_model()
    for parameter in model.model.parameters():
        parameter.requires_grad_(False)
    trainer = make_trainer(model, tmp_path, cls=DiverseTrainer)
    with pytest.raises(ValueError, match="No gradient reaches"):
        trainer.train()
