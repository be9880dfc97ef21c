"""NDI over training: measured at the right steps, logged, kept as curves, taken up again, and without a trace in the weights."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import random_batch, tiny_model
from differentiating import CHEAP, encoder, labelled, unknown_family
from training import Logger, make_trainer
from transformers import TrainerCallback
from vision import image_batch, tiny_vision

from hf_spectral_prune import NDITrackingCallback
from hf_spectral_prune.calibration import collect_moments
from hf_spectral_prune.criteria import collect_statistics, make_criterion, score_units
from hf_spectral_prune.criteria.passes.ndi_terms import relative_norms
from hf_spectral_prune.criteria.score import group_data
from hf_spectral_prune.models.families import module_of, unit_groups
from hf_spectral_prune.studies.differentiation import CURVES_FILE, measure_ndi

KEYS = [f"layers.{layer}.{kind}" for layer in range(3) for kind in ("ffn", "heads")]


def tracking(batches, interval_steps=3, **options):
    return NDITrackingCallback(batches[:1], interval_steps, **{"criterion_args": CHEAP} | options)


def test_points_fall_at_the_interval_and_reach_the_loggers(batches, tmp_path):
    logger = Logger()
    trainer = make_trainer(tiny_model(), tmp_path, [logger], max_steps=7)
    callback = tracking(batches).attach(trainer)
    trainer.train()
    assert [point["step"] for point in callback.points] == [0, 3, 6, 7]
    assert [step for step, logs in logger.logs if "ndi/layers.0.ffn" in logs] == [0, 3, 6, 7]
    assert [step for step, logs in logger.logs if "loss" in logs] == list(range(1, 8))
    written = json.loads((tmp_path / CURVES_FILE).read_text())
    assert written["points"] == callback.points and list(callback.points[0]["groups"]) == KEYS
    assert written["criterion_args"]["num_probes"] == 1
    assert not list(tmp_path.glob("*.partial"))
    for key, figures in callback.points[-1]["groups"].items():
        ndi = callback.indices[key].ndi
        assert (
            figures["ndi"] == pytest.approx(float(ndi.mean()))
            and figures["ndi_low"] <= float(ndi.median()) <= figures["ndi_high"]
        )
        assert 0 <= figures["correlation"] <= 1 and 0 <= figures["informativeness"] <= 1
        assert figures["units"] == len(ndi)


def test_importance_is_the_measured_index_times_the_weight_norm(batches):
    """What is tracked is what the criterion scores with (eq. 36)."""
    model, criterion = tiny_model(), make_criterion("ndi", CHEAP)
    groups = unit_groups(model)
    moments = collect_moments(model, groups, batches, progress=False)
    statistics = collect_statistics(model, groups, criterion, batches, moments, progress=False)
    scores = score_units(model, groups, criterion, moments, statistics=statistics, progress=False)
    measured = measure_ndi(model, batches, criterion)
    for group in groups:
        norms = relative_norms(group_data(model, group, None, 42).unit_norms())
        torch.testing.assert_close(scores[group.key], measured[group.key].ndi * norms)


def test_correlation_leaves_out_pairs_inside_a_unit(batches):
    model = tiny_model()
    (group,) = [group for group in unit_groups(model) if group.key == "layers.1.heads"]
    seen = []
    module_of(model, 1, "self_attn.o_proj").register_forward_pre_hook(lambda _module, args: seen.append(args[0].flatten(0, 1)))
    for batch in batches:
        model(**batch)
    matrix = torch.corrcoef(torch.cat(seen).double().T)
    unit = torch.arange(len(matrix)) // group.channels_per_unit
    expected = float(matrix[unit[:, None] != unit].square().mean())
    assert measure_ndi(model, batches)[group.key].correlation == pytest.approx(expected, rel=1e-4)


def test_tracking_leaves_no_trace_in_the_weights(batches, tmp_path):
    """Dropout and data order draw from the same generators as without it."""
    models = [encoder(), encoder()]
    callbacks = [[], [tracking(labelled(batches), 1)]]
    for model, more in zip(models, callbacks, strict=True):
        make_trainer(model, tmp_path, more, seed=1).train()
    for (name, one), other in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other), name


def test_resumed_run_has_the_curves_of_the_whole_one(batches, tmp_path):
    class Killed(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise KeyboardInterrupt

    def train(folder, callbacks=(), resume=None):
        callback = tracking(batches, 2)
        trainer = make_trainer(tiny_model(), folder, [callback, *callbacks], save_strategy="steps", save_steps=3)
        trainer.train(resume_from_checkpoint=resume)
        return callback

    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", [Killed()])
    # A point after the checkpoint, from the run that was killed later than its last save.
    file = tmp_path / "killed" / CURVES_FILE
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"points": [*content["points"], {"step": 4, "epoch": 0.5, "groups": {}}]}))
    resumed = train(tmp_path / "killed", resume=True)
    assert resumed.points == whole.points and json.loads(file.read_text())["points"] == whole.points


def test_images_are_taken_as_they_come(tmp_path):
    """A ViT on raw images: the Trainer's image processor is not needed for tensors."""
    model = tiny_vision("vit", num_hidden_layers=2)
    images, labels = image_batch(24).values()
    rows = [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]
    trainer = make_trainer(model, tmp_path, rows=rows, max_steps=2)
    callback = NDITrackingCallback((images, labels), 1, num_samples=8, criterion_args=CHEAP).attach(trainer)
    trainer.train()
    assert len(callback.points) == 3 and len(callback.points[0]["groups"]) == 4


BAD = {
    "unknown family": (unknown_family, {}, "`mamba` is not a known family"),
    "no calibration": (tiny_model, {"calibration_dataset": None}, "no calibration data"),
    "unknown kind": (tiny_model, {"units": ["channels"]}, "`ffn`, `heads`"),
    "no targets": (encoder, {}, "has no `labels`"),
    "interval": (tiny_model, {"interval_steps": 0}, "`interval_steps` is 0"),
    "samples": (tiny_model, {"num_samples": -1}, "`num_samples` is -1"),
    "option": (tiny_model, {"criterion_args": {"num_bin": 4}}, "`num_bins`"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_tracked_is_told_before_any_step(case, tmp_path):
    build, options, message = BAD[case]
    with pytest.raises(ValueError, match=message) as raised:
        make_trainer(build(), tmp_path, [NDITrackingCallback(**{"calibration_dataset": [random_batch()]} | options)])
    assert "\n" not in str(raised.value)


def test_curves_that_are_none_are_told(batches, tmp_path):
    make_trainer(tiny_model(), tmp_path, save_strategy="steps", save_steps=3).train()
    (tmp_path / CURVES_FILE).write_text("[]")
    trainer = make_trainer(tiny_model(), tmp_path, [tracking(batches)])
    with pytest.raises(ValueError, match="Move it away"):
        trainer.train(resume_from_checkpoint=True)
