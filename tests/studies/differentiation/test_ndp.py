"""NDP in a Trainer: target and floors met, the ranking follows the training, moments follow their units, what stands still."""

from __future__ import annotations

import copy
from fractions import Fraction

import pytest
import torch
from conftest import logits, random_batch, tiny_encoder, tiny_model
from differentiating import CHEAP, labelled, logged, unknown_family
from torch import nn
from training import make_trainer
from transformers import AutoModelForCausalLM, TrainerCallback

from hf_spectral_prune import NDPArguments, NDPCallback, PruningSchedule, SpectralPruningArguments
from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.models.families import parts, unit_groups
from hf_spectral_prune.rounds import decide, start
from hf_spectral_prune.studies.differentiation.pruning import affected_parameters
from hf_spectral_prune.surgery import apply_plan
from hf_spectral_prune.surgery.plan import PruningPlan


def ndp_args(**fields) -> NDPArguments:
    defaults = {"disable_tqdm": True, "target_reduction": 0.4, "target_scope": "prunable", "round_to": 4, "min_ffn_units": 8}
    return NDPArguments(**defaults | {"num_rounds": 2, "criterion_args": CHEAP} | fields)


SCHEDULE = PruningSchedule("linear", start_step=0, end_step=4)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_rounds_meet_the_target_and_keep_the_floors(family, batches, tmp_path):
    model = tiny_model() if family == "llama" else tiny_encoder("bert")
    dense, groups = num_parameters(model), unit_groups(model)
    prunable = sum(group.size * group.parameters_per_unit for group in groups)
    data = batches if family == "llama" else labelled(batches)
    trainer = make_trainer(model, tmp_path)
    callback = NDPCallback(ndp_args(min_kv_groups=2), data, schedule=SCHEDULE)
    callback.attach(trainer)
    trainer.train()
    counts = logged(trainer, "pruning/parameters")
    assert list(counts) == [2, 4] and num_parameters(model) == counts[4] < counts[2] < dense
    step = max(4 * groups[0].parameters_per_unit, groups[1].parameters_per_unit)
    for removed, wanted in ((dense - counts[2], 0.2), (dense - counts[4], 0.4)):
        assert wanted * prunable - step < removed <= wanted * prunable
    floors = {"ffn": 8, "heads": 2}
    assert all(group.size >= floors[group.kind] for group in unit_groups(model))
    assert callback.plan.kept.keys() == {group.key for group in groups}
    if family == "llama":
        model.save_pretrained(tmp_path / "saved")
        assert torch.equal(
            logits(AutoModelForCausalLM.from_pretrained(tmp_path / "saved"), random_batch()), logits(model, random_batch())
        )


def test_plain_networks_are_pruned_too(tmp_path):
    pytest.importorskip("torch_pruning")
    from hf_spectral_prune.data.images import build_images
    from hf_spectral_prune.models.torch_model import wrap

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 3))
    images, labels = torch.randn(64, 12), torch.arange(64) % 3
    rows = [{"pixel_values": x, "labels": y} for x, y in zip(images, labels, strict=True)]
    trainer = make_trainer(wrap(network, images[:1]), tmp_path, rows=rows)
    callback = NDPCallback(
        ndp_args(units=["channels"], round_to=1, min_channels=4),
        build_images((images, labels), num_samples=32),
        schedule=SCHEDULE,
    )
    callback.attach(trainer)
    trainer.train()
    assert network[0].out_features == network[2].in_features < 32
    assert num_parameters(network) == callback.plan.parameters_after


def test_the_ranking_is_global_and_made_anew_at_every_round():
    """By hand: three layers of 24 neurons in steps of 4; of the 36 to go, 18 may in the first round and 36 in the second."""
    model, args = tiny_model(), ndp_args(units=["ffn"], target_reduction=0.5, min_ffn_units=4)
    run = start(model, args, weights="")
    scores = {f"layers.{layer}.ffn": torch.full((24,), value) for layer, value in enumerate((0.1, 9.0, 8.0))}
    cost = unit_groups(model, ["ffn"])[0].parameters_per_unit
    assert run.costs[0] - run.costs[1] == 36 * cost
    plan = decide(model, args, run, scores, Fraction(1, 2))
    assert [len(kept) for kept in plan.kept.values()] == [8, 24, 24]
    apply_plan(model, plan, check_weights=False)
    run.add(plan)
    # Training has changed what the layers are worth: the second round takes the rest from the last one.
    scores = {
        "layers.0.ffn": torch.full((8,), 9.0),
        "layers.1.ffn": torch.full((24,), 9.0),
        "layers.2.ffn": torch.full((24,), 0.1),
    }
    assert [len(kept) for kept in decide(model, args, run, scores, 1).kept.values()] == [8, 24, 4]


def test_moments_follow_and_all_weights_keep_learning(batches, tmp_path):
    """Without `finetune_share` nothing stands still after a cut, and the optimizer holds the model's own parameters."""

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
            if state.global_step == 4:
                held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
                assert held == set(model.parameters())
                assert all(optimizer.state[value]["exp_avg"].shape == value.shape for value in held)
                assert all(float(optimizer.state[value]["step"]) == 4 for value in held)
                self.weights = copy.deepcopy(model.state_dict())

    model, watch = tiny_model(), Watch()
    make_trainer(model, tmp_path, [NDPCallback(ndp_args(), batches, schedule=SCHEDULE), watch]).train()
    assert all(not torch.equal(value, watch.weights[name]) for name, value in model.named_parameters())


def affected_names(model, plan, share) -> set[str]:
    chosen = affected_parameters(model, plan, share)
    return {name for name, value in model.named_parameters() if value in chosen}


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_after_the_last_round_only_the_most_affected_groups_learn(share, batches, tmp_path):
    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
            if state.global_step == 4:
                self.weights, self.moments = copy.deepcopy(model.state_dict()), {}
            if state.global_step in (2, 3):  # before the last round everything learns
                before, self.early = getattr(self, "early", None), copy.deepcopy(model.state_dict())
                if before is not None:
                    assert all(not torch.equal(before[name], value) for name, value in model.named_parameters())
            self.last = {name: copy.deepcopy(optimizer.state[value]) for name, value in model.named_parameters()}

    model, watch = tiny_model(), Watch()
    callback = NDPCallback(ndp_args(finetune_share=share), batches, schedule=SCHEDULE)
    make_trainer(model, tmp_path, [callback, watch], weight_decay=0.1).train()
    learning = affected_names(model, callback.plan, share)
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, watch.weights[name])}
    assert moved == learning and 0 < len(learning) < len(watch.weights)
    assert {name for name, state in watch.last.items() if float(state["step"]) == 6} == learning


def test_most_affected_groups_come_first():
    model = tiny_model()
    groups = unit_groups(model, ["ffn"])
    kept = {group.key: tuple(range(count)) for group, count in zip(groups, (24, 20, 8), strict=True)}
    plan = PruningPlan("llama", {group.key: 24 for group in groups}, kept, 0, 0)
    expected = [{part.module.weight for part in parts(model, group)} for group in groups]
    assert affected_parameters(model, plan, 0.5) == expected[2]
    assert affected_parameters(model, plan, 0.51) == expected[1] | expected[2] == affected_parameters(model, plan, 1.0)


@pytest.mark.parametrize("stop", [2, 5])
def test_resumed_run_ends_like_the_whole_one(stop, batches, tmp_path):
    class Killed(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == stop:
                raise KeyboardInterrupt

    def train(folder, callbacks=(), resume=None):
        model, callback = tiny_model(), NDPCallback(ndp_args(finetune_share=0.5), batches, schedule=SCHEDULE)
        trainer = make_trainer(model, folder, [callback, *callbacks], save_strategy="steps", save_steps=stop)
        trainer.train(resume_from_checkpoint=resume)
        return model, callback

    whole, expected = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", [Killed()])
    resumed, callback = train(tmp_path / "killed", resume=True)
    assert callback.plan.to_json() == expected.plan.to_json()
    for (name, one), other in zip(resumed.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other), name


BAD_RUNS = {
    "unknown family": (unknown_family, {}, {}, "`mamba` is not a known family"),
    "out of reach": (tiny_model, {"target_reduction": 0.9, "min_ffn_units": 20}, {}, "out of reach"),
    "too little": (tiny_model, {"target_reduction": 0.001}, {}, "smallest step"),
    "ends after training": (tiny_model, {}, {"schedule": PruningSchedule("linear", end_step=9)}, "ends at step 9"),
}


@pytest.mark.parametrize("case", BAD_RUNS)
def test_what_cannot_be_pruned_is_told_before_any_step(case, batches, tmp_path):
    build, fields, options, message = BAD_RUNS[case]
    model = build()
    before = copy.deepcopy(model.state_dict())

    def run():
        callback = NDPCallback(ndp_args(**fields), **{"calibration_dataset": batches, "schedule": SCHEDULE} | options)
        make_trainer(model, tmp_path, [callback]).train()

    with pytest.raises(ValueError, match=message) as raised:
        run()
    assert "\n" not in str(raised.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"criterion": "energy"}, "NDP is defined with `ndi`"),
        ({"layout": "uniform"}, "NDP is defined with `per_layer`"),
        ({"allocation": "loss_curves"}, "NDP is defined with `scores`"),
        ({"reallocate": False}, "NDP is defined with `True`"),
        ({"finetune_share": 0.0}, "above 0 and at most 1"),
        ({"finetune_share": 1.5}, "above 0 and at most 1"),
        ({"num_rounds": 0}, "`num_rounds` is 0"),
    ],
    ids=str,
)
def test_arguments_that_cannot_work_are_told(fields, message):
    with pytest.raises(ValueError, match=message):
        ndp_args(**fields)


def test_arguments_of_another_method_are_told(batches):
    with pytest.raises(ValueError, match="Give `NDPArguments`"):
        NDPCallback(SpectralPruningArguments(criterion="ndi"), batches)
