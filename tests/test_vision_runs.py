"""Whole runs on models that read images: targets, figures in the report, and batch norms after a cut."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from vision import CONVOLUTIONAL, VISION, image_batch, is_transformer, prune, tiny_vision

from hf_spectral_prune import PruningSchedule, SpectralPruner, SpectralPruningArguments, SpectralPruningCallback
from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.models.families import unit_groups
from hf_spectral_prune.planning.flops import layer_macs
from hf_spectral_prune.planning.reduction_target import set_target
from hf_spectral_prune.surgery import apply_plan, has_batch_norms, recalibrate_norms

BATCH = image_batch(4)


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
@pytest.mark.parametrize("family", VISION)
def test_flops_target_is_met_from_above_within_a_step(family, layout):
    model = tiny_vision(family)
    fields = {"layout": layout, "target_scope": "flops", "target_reduction": 0.4}
    if layout == "per_layer":
        fields["allocation"] = "scores"
    pruner = prune(model, **fields)
    macs = pruner.output.report["macs"]
    goal = macs["before"] - int(0.4 * macs["before"])
    assert goal <= macs["after"] < macs["before"]
    assert macs["after"] == sum(layer_macs(pruner.model, BATCH).values())
    assert macs["after"] - goal <= 0.1 * macs["before"]


def test_macs_of_a_transformer_fall_as_planned():
    """The units' costs add up there, attention products included."""
    pruner = prune(tiny_vision("vit"), target_scope="flops", target_reduction=0.4, layout="per_layer", allocation="scores")
    dense = tiny_vision("vit")
    costs = set_target(dense, pruner.args, num_parameters(dense), num_parameters(dense), None).groups
    kept = pruner.output.plan.kept
    saved = sum((group.size - len(kept[group.key])) * group.parameters_per_unit for group in costs)
    macs = pruner.output.report["macs"]
    assert macs["before"] - macs["after"] == saved
    assert any(key.endswith("heads") and len(value) < 8 for key, value in kept.items())


@pytest.mark.parametrize("family", VISION)
def test_report_has_the_macs_of_every_layer(family):
    dense = layer_macs(tiny_vision(family), BATCH)
    pruner = prune(tiny_vision(family))
    macs = pruner.output.report["macs"]
    assert {path: before for path, (before, _) in macs["layers"].items()} == dense
    assert {path: after for path, (_, after) in macs["layers"].items()} == layer_macs(pruner.model, BATCH)
    assert macs["before"] == sum(dense.values()) > macs["after"]
    assert macs["input_shape"] == [3, 16, 16]


@pytest.mark.parametrize("family", ["resnet-bottleneck", "vit"])
def test_rounds_meet_the_same_target_as_one_cut(family):
    one, three = prune(tiny_vision(family)), prune(tiny_vision(family), num_rounds=3)
    assert three.output.metrics == one.output.metrics
    assert three.output.report["sizes"] == one.output.report["sizes"]


@pytest.mark.parametrize("criterion", ["spectral", "magnitude", "random", "activation", "taylor", "fisher", "ndi", "fluctuation"])
@pytest.mark.parametrize("family", ["resnet-basic", "vit"])
def test_criteria_score_every_unit(family, criterion):
    pruner = prune(tiny_vision(family), criterion=criterion)
    for group in unit_groups(tiny_vision(family)):
        scores = pruner.scores[group.key]
        assert scores.shape == (group.size,)
        assert torch.isfinite(scores).all()
        assert criterion == "random" or scores.unique().numel() > 1


# ---- batch norms


@pytest.mark.parametrize("family", CONVOLUTIONAL)
def test_batch_norms_take_their_statistics_from_the_calibration_images_and_nothing_else_changes(family):
    pruner = prune(tiny_vision(family))
    plain = tiny_vision(family)
    apply_plan(plain, pruner.output.plan)
    before, after = plain.state_dict(), pruner.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    # The first norm reads the first convolution, which no norm comes before: its statistics can be worked out.
    convolution, norm = [module for module in plain.modules() if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))][:2]
    seen = []
    convolution.register_forward_hook(lambda _module, _args, output: seen.append(output.detach()))
    for seed in (0, 1):
        plain(pixel_values=image_batch(seed=seed)["pixel_values"])
    mean = torch.stack([value.mean(dim=(0, 2, 3)) for value in seen]).mean(dim=0)
    variance = torch.stack([value.var(dim=(0, 2, 3)) for value in seen]).mean(dim=0)
    (name,) = [name for name, module in plain.named_modules() if module is norm]
    assert torch.allclose(after[f"{name}.running_mean"], mean, atol=1e-5)
    assert torch.allclose(after[f"{name}.running_var"], variance, atol=1e-5)
    assert any("batch norms' statistics were computed again from 16 " in note for note in pruner.output.plan.notes)


def test_recalibration_leaves_mode_momentum_and_single_rows_alone():
    model = tiny_vision("resnet-basic").train()
    before = copy.deepcopy(model.state_dict())
    recalibrate_norms(model, [image_batch(1)])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    recalibrate_norms(model, [image_batch(4), image_batch(1)])
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.momentum == 0.1 and norm.training and int(norm.num_batches_tracked) == 1 for norm in norms)
    assert model.training


def test_without_calibration_data_the_statistics_stay_and_the_report_says_so():
    model = tiny_vision("resnet-basic")
    state = copy.deepcopy(model.state_dict())
    options = {"criterion": "magnitude", "units": ["channels"], "round_to": 2, "min_channels": 2, "disable_tqdm": True}
    output = SpectralPruner(model, SpectralPruningArguments(**options)).prune()
    kept = output.plan.kept_index("resnet.embedder.embedder.convolution.channels")
    name = "resnet.embedder.embedder.normalization.running_mean"
    assert torch.equal(model.state_dict()[name], state[name][kept])
    assert any("keep the statistics of the dense network" in note for note in output.report["notes"])
    assert not has_batch_norms(tiny_vision("vit"))


def test_uniform_vit_is_a_stock_class_with_its_head_size():
    pruner = prune(tiny_vision("vit"), target_reduction=0.5)
    config = pruner.model.config
    assert type(pruner.model).__name__ == "ViTForImageClassification"
    assert config.num_attention_heads < 8 and config.head_dim == 4
    per_layer = prune(tiny_vision("vit"), layout="per_layer", allocation="scores", target_reduction=0.5)
    assert type(per_layer.model).__name__ == "CriaViTForImageClassification"


@pytest.mark.parametrize("family", ["resnet-bottleneck", "mobilenet_v2"])
def test_resumed_run_ends_with_the_same_model(family, tmp_path):
    options = {"num_rounds": 2, "save_strategy": "steps", "output_dir": str(tmp_path), "criterion": "spectral"}
    whole = prune(tiny_vision(family), **options).model.eval()
    model = tiny_vision(family)
    data = [image_batch(seed=seed) for seed in (0, 1)]
    fields = {"units": ["channels"], "target_reduction": 0.3, "target_scope": "prunable", "round_to": 2, "min_channels": 2}
    fields["min_ffn_units"] = 4
    args = SpectralPruningArguments(**fields, **options, disable_tqdm=True)
    resumed = SpectralPruner(model, args, data).prune(resume_from_checkpoint=True).model.eval()
    assert resumed.config.cria_channels == whole.config.cria_channels
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


@pytest.mark.parametrize("schedule", [PruningSchedule(start_step=2), PruningSchedule("end")], ids=["step", "end"])
def test_the_callback_takes_a_trainers_rows_and_recalibrates_the_norms(schedule, tmp_path):
    model = tiny_vision("resnet-basic")
    batches = [image_batch(8, seed) for seed in range(2)]
    rows = [{name: value[row] for name, value in batch.items()} for batch in batches for row in range(8)]
    options = {"units": ["channels"], "target_reduction": 0.3, "target_scope": "prunable", "round_to": 2, "min_channels": 2}
    callback = SpectralPruningCallback(
        SpectralPruningArguments(criterion="magnitude", num_rounds=1, disable_tqdm=True, **options), rows, schedule=schedule
    )
    arguments = TrainingArguments(
        str(tmp_path), max_steps=4, learning_rate=0.0, report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    callback.attach(trainer)
    trainer.train()
    assert callback.plan.parameters_after < callback.plan.parameters_before
    if schedule.kind == "end":  # nothing ran after the cut, so the statistics are those of the calibration images
        found = [norm.running_mean.clone() for norm in trainer.model.modules() if isinstance(norm, nn.BatchNorm2d)]
        recalibrate_norms(trainer.model, callback._calibration.batches)
        wanted = [norm.running_mean for norm in trainer.model.modules() if isinstance(norm, nn.BatchNorm2d)]
        assert all(torch.allclose(one, two, atol=1e-5) for one, two in zip(found, wanted, strict=True))


@pytest.mark.parametrize("family", sorted(VISION))
def test_bfloat16_models_are_pruned_and_measured_with_float32_images(family):
    model = tiny_vision(family).to(torch.bfloat16)
    kinds = ["ffn", "heads"] if is_transformer(model) else ["channels"]
    options = {"units": kinds, "round_to": 2, "min_channels": 2, "min_ffn_units": 4, "layout": "per_layer", "disable_tqdm": True}
    batches = [image_batch(seed=seed) for seed in (0, 1)]
    output = SpectralPruner(model, SpectralPruningArguments(target_reduction=0.2, **options), batches, batches).prune()
    assert next(output.model.parameters()).dtype == torch.bfloat16
    assert math.isfinite(output.report["metrics_after"]["after_loss"])
