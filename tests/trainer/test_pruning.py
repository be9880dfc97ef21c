"""Pruning inside a Trainer: schedules, the optimizer's state, resume, best model, several processes, errors."""

from __future__ import annotations

import copy
import shutil
from fractions import Fraction

import pytest
import torch
import training
from conftest import ENCODERS, logits, num_moments, random_batch, refused, tiny_encoder, tiny_model
from products import only
from torch import nn
from transformers import AutoModelForCausalLM, MambaConfig, MambaForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging as hf_logging

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.data.rows import causal_collator
from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.models.families import unit_groups
from hf_spectral_prune.surgery import apply_plan, masked, settle_class, zero_masked
from hf_spectral_prune.surgery.plan import PruningPlan
from hf_spectral_prune.trainer import removing
from hf_spectral_prune.trainer.optimizer import Replacements, optimizer_follows
from hf_spectral_prune.trainer.pruning import SpectralPruningCallback
from hf_spectral_prune.trainer.schedule import PruningSchedule


def text_rows(count: int = 32, length: int = 12, seed: int = 0) -> list[dict]:
    batch = random_batch(count, length, seed)
    return [{"input_ids": ids} for ids in batch["input_ids"]]


def pruning_args(**fields) -> SpectralPruningArguments:
    defaults = {"disable_tqdm": True, "target_reduction": 0.3, "target_scope": "prunable", "round_to": 4, "min_ffn_units": 4}
    return SpectralPruningArguments(**defaults | {"criterion": "energy", "layout": "per_layer", "compensation": "none"} | fields)


def make_trainer(model, folder, callbacks=(), **fields) -> Trainer:
    causal = "ForCausalLM" in type(model).__name__
    rows = [row | ({} if causal else {"label": index % 2}) for index, row in enumerate(text_rows())]
    return training.make_trainer(model, folder, callbacks, rows=rows, **fields)


def widths(model) -> list[int]:
    return [group.size for group in unit_groups(model)]


def parameters_at_steps(trainer) -> dict[int, int]:
    return {entry["step"]: entry["pruning/parameters"] for entry in trainer.state.log_history if "pruning/parameters" in entry}


@pytest.mark.parametrize(
    ("schedule", "num_rounds", "steps"),
    [
        pytest.param(PruningSchedule("one_shot"), 2, [0], marks=pytest.mark.slow),
        pytest.param(PruningSchedule("one_shot", start_step=3), 1, [3], marks=pytest.mark.slow),
        (PruningSchedule("one_shot", start_epoch=0.5), 1, [4]),
        (PruningSchedule("linear", start_step=1, end_step=5), 4, [2, 3, 4, 5]),
        pytest.param(PruningSchedule("cubic"), 3, [1, 2, 3], marks=pytest.mark.slow),
        pytest.param(PruningSchedule("end"), 2, [6], marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_rounds_fall_where_the_schedule_says_and_meet_the_target(schedule, num_rounds, steps, batches, tmp_path):
    model = tiny_model()
    dense = num_parameters(model)
    callback = SpectralPruningCallback(pruning_args(num_rounds=num_rounds), batches, schedule=schedule)
    trainer = make_trainer(model, tmp_path)
    callback.attach(trainer)
    trainer.train()
    assert list(parameters_at_steps(trainer)) == steps
    assert num_parameters(model) == callback.plan.parameters_after == parameters_at_steps(trainer)[steps[-1]]
    assert callback.plan.parameters_before == dense
    expected = SpectralPruner(tiny_model(), pruning_args(), batches).prune().metrics["parameters_after"]
    assert num_parameters(model) == expected
    model.save_pretrained(tmp_path / "saved")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(reloaded, random_batch()), logits(model, random_batch()))


def test_cubic_shares_follow_their_formula():
    shares = [PruningSchedule("cubic").share(index, 4) for index in (1, 2, 3, 4)]
    assert shares == [1 - Fraction(3, 4) ** 3, 1 - Fraction(1, 2) ** 3, 1 - Fraction(1, 4) ** 3, 1]


@pytest.mark.parametrize("compensation", only(["sequential"], ["least_squares", "sequential"]))
def test_pruning_before_the_first_step_is_what_the_pruner_does(compensation, batches, tmp_path):
    """With a learning rate of zero the trained model is the pruner's, bit for bit."""
    args = pruning_args(num_rounds=3, layout="uniform", compensation=compensation)
    expected = SpectralPruner(tiny_model(), args, batches).prune()
    callback = SpectralPruningCallback(args, batches)
    model = tiny_model()
    make_trainer(model, tmp_path, [callback], learning_rate=0.0, max_steps=2).train()
    assert callback.plan.kept == expected.plan.kept
    assert type(model).__name__ == "LlamaForCausalLM"
    assert torch.equal(logits(model, random_batch()), logits(expected.model, random_batch()))


def one_step(model, optimizer, batch):
    model.train()
    model(**batch, labels=batch["input_ids"]).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def plan_of_every_other_unit(model) -> PruningPlan:
    groups = unit_groups(model)
    sizes = {group.key: group.size for group in groups}
    kept = {group.key: tuple(range(group.layer % 2, group.size, 2)) for group in groups}
    return PruningPlan(model.config.model_type, sizes, kept, num_parameters(model), 0)


@pytest.mark.parametrize("family", ["llama-biases", "qwen3", "gemma3", "bert", "electra", "modernbert-biases"])
def test_adam_moments_follow_their_units(family):
    """Every entry of the state is the one of the same weight before the cut, by exact index."""
    if family in ENCODERS:
        model = tiny_encoder(family, task="ForMaskedLM")
    else:
        model = tiny_model(family)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    one_step(model, optimizer, random_batch())
    with torch.no_grad():  # the state becomes the weight itself, so that the cut weight says where each entry belongs
        for parameter in model.parameters():
            optimizer.state[parameter]["exp_avg"].copy_(parameter)
            optimizer.state[parameter]["exp_avg_sq"].copy_(2 * parameter)
    plan = plan_of_every_other_unit(model)
    before = sum(len(group["params"]) for group in optimizer.param_groups)
    with optimizer_follows(optimizer, model, plan):
        apply_plan(model, plan)
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    assert held == set(model.parameters()) and len(held) == before
    assert set(optimizer.state) == held
    for parameter in model.parameters():
        assert torch.equal(optimizer.state[parameter]["exp_avg"], parameter)
        assert torch.equal(optimizer.state[parameter]["exp_avg_sq"], 2 * parameter)
        assert optimizer.state[parameter]["step"] == 1


def test_step_after_a_cut_is_the_step_of_a_model_that_was_always_narrow():
    """Masked from the start and cut in the middle: the kept units walk the same path."""
    batches = [random_batch(seed=seed) for seed in range(4)]
    wide, narrow = tiny_model().double(), tiny_model().double()
    plan = plan_of_every_other_unit(narrow)
    apply_plan(narrow, plan)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-2) for model in (wide, narrow)]
    with masked(wide, {key: plan.kept_index(key) for key in plan.kept}):
        for batch in batches[:2]:
            one_step(wide, optimizers[0], batch)
    with optimizer_follows(optimizers[0], wide, plan):
        apply_plan(wide, plan, check_weights=False)
    for batch in batches[2:]:
        one_step(wide, optimizers[0], batch)
    for batch in batches:
        one_step(narrow, optimizers[1], batch)
    for (name, one), other in zip(wide.named_parameters(), narrow.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adafactor"])
def test_other_optimizers_follow_or_start_anew(optimizer):
    from transformers.optimization import Adafactor

    model = tiny_model()
    if optimizer == "adafactor":
        made = Adafactor(model.parameters())
    else:
        made = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    one_step(model, made, random_batch())
    plan = plan_of_every_other_unit(model)
    with optimizer_follows(made, model, plan):
        apply_plan(model, plan, check_weights=False)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    one_step(model, made, random_batch(seed=2))
    assert not any(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    "fields",
    only(
        [{}, {"optim": "adafactor"}],
        [
            {},
            {"gradient_accumulation_steps": 2},
            {"bf16": True},
            {"gradient_checkpointing": True},
            {"optim": "adafactor"},
            {"lr_scheduler_type": "cosine", "max_grad_norm": 0.1},
        ],
    ),
    ids=lambda fields: next(iter(fields), "plain"),
)
def test_pruned_layers_keep_learning(fields, batches, tmp_path):
    """A stale optimizer would train the old parameters: every parameter must move after the cut."""

    class Snapshot(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 3:
                self.weights = {name: value.detach().clone() for name, value in model.named_parameters()}

    model, snapshot = tiny_model(), Snapshot()
    callback = SpectralPruningCallback(pruning_args(), batches, schedule=PruningSchedule("one_shot", start_step=3))
    make_trainer(model, tmp_path, [callback, snapshot], **fields).train()
    assert widths(model) != widths(tiny_model())
    for name, value in model.named_parameters():
        assert value.shape == snapshot.weights[name].shape
        assert not torch.equal(value, snapshot.weights[name]), name


@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize("stop", only([3], [2, 3, 4]))
def test_resumed_training_ends_like_the_whole_run(family, stop, batches, tmp_path):
    def fresh():
        if family == "llama":
            return tiny_model()
        return tiny_encoder("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)

    def train(folder, callbacks=(), resume=None):
        model = fresh()
        callback = SpectralPruningCallback(
            pruning_args(num_rounds=2, allocation="scores"),
            batches,
            schedule=PruningSchedule("linear", start_step=1, end_step=5),
        )
        trainer = make_trainer(model, folder, [callback, *callbacks], save_strategy="steps", save_steps=1)
        trainer.train(resume_from_checkpoint=resume)
        return model, callback, trainer

    class Killed(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == stop:
                raise KeyboardInterrupt

    whole, expected, _ = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", [Killed()])
    resumed, callback, trainer = train(tmp_path / "killed", resume=True)
    assert callback.plan.to_json() == expected.plan.to_json()
    for (name, one), other in zip(resumed.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert list(parameters_at_steps(trainer)) == [3, 5]


def test_best_model_is_the_best_since_the_last_cut(batches, tmp_path):
    """The dense model does best here, but coming back to it would undo the pruning (and its weights do not fit)."""
    model = tiny_model()
    seen = {}

    class Watch(TrainerCallback):
        def on_evaluate(self, args, state, control, model=None, metrics=None, **kwargs):
            seen[state.global_step] = (metrics["eval_loss"], {k: v.clone() for k, v in model.state_dict().items()})

    callback = SpectralPruningCallback(
        pruning_args(num_rounds=2, target_reduction=0.5), batches, schedule=PruningSchedule("linear", start_step=0, end_step=4)
    )
    every = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    trainer = make_trainer(
        model, tmp_path, [callback, Watch()], max_steps=8, learning_rate=0.05, load_best_model_at_end=True, **every
    )
    trainer.train()
    best = min(range(4, 9), key=lambda step: seen[step][0])
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    assert all(torch.equal(value, seen[best][1][name]) for name, value in model.state_dict().items())


def test_end_schedule_prunes_the_best_model(batches, tmp_path):
    model = tiny_model()
    callback = SpectralPruningCallback(pruning_args(), batches, schedule=PruningSchedule("end"))
    every = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    trainer = make_trainer(model, tmp_path, [callback], learning_rate=0.05, load_best_model_at_end=True, **every)
    trainer.train()
    best = AutoModelForCausalLM.from_pretrained(trainer.state.best_model_checkpoint)
    assert widths(best) == widths(tiny_model())
    again = settle_class(apply_plan(best, callback.plan))
    assert torch.equal(logits(again, random_batch()), logits(model, random_batch()))


def test_figures_reach_the_trainers_loggers(batches, tmp_path):
    logger = training.Logger()
    trainer = make_trainer(tiny_model(), tmp_path, [logger])
    SpectralPruningCallback(pruning_args(), batches, schedule=PruningSchedule("one_shot", start_step=3), score_steps=2).attach(
        trainer
    )
    trainer.train()
    cut = next(logs for step, logs in logger.logs if step == 3 and "pruning/reduction" in logs)
    assert 0 < cut["pruning/reduction"] < 1
    assert [step for step, logs in logger.logs if "scores/layers.1.ffn/mean" in logs] == [2, 3, 4, 6]
    # The Trainer's own log of the same step is not lost.
    assert [step for step, logs in logger.logs if "loss" in logs] == [1, 2, 3, 4, 5, 6]


def test_without_attach_figures_are_in_the_history(batches, tmp_path):
    trainer = make_trainer(tiny_model(), tmp_path, [SpectralPruningCallback(pruning_args(), batches)])
    trainer.train()
    assert list(parameters_at_steps(trainer)) == [0]


def test_added_after_the_trainer_was_made_it_works_too(batches, tmp_path):
    trainer = make_trainer(tiny_model(), tmp_path)
    trainer.add_callback(SpectralPruningCallback(pruning_args(), batches))
    trainer.train()
    assert widths(trainer.model) != widths(tiny_model())


def test_the_calibration_data_is_by_default_of_the_training_data(tmp_path):
    """The same sample that a pruner draws of those rows."""
    callback = SpectralPruningCallback(pruning_args(num_calibration_samples=9))
    make_trainer(tiny_model(), tmp_path, [callback]).train()
    pruner = SpectralPruner(tiny_model(), pruning_args(num_calibration_samples=9), text_rows(), data_collator=causal_collator())
    assert callback.plan.kept == pruner.plan().kept


def test_two_callbacks_on_one_trainer_are_refused(batches, tmp_path):
    callbacks = [SpectralPruningCallback(pruning_args(), batches) for _ in range(2)]
    trainer = make_trainer(tiny_model(), tmp_path, callbacks)
    refused(trainer.train, "two callbacks of the class `SpectralPruningCallback`", "`remove_callback`")


def test_a_pruner_is_attached_to_a_trainer_in_a_line(tmp_path):
    trainer = make_trainer(tiny_model(), tmp_path)
    options = {"target_reduction": 0.3, "target_scope": "prunable", "units": "ffn", "round_to": 4, "min_ffn_units": 4}
    callback = SpectralPruner.attach(trainer, schedule="cubic", num_rounds=3, **options)
    trainer.train()
    assert list(parameters_at_steps(trainer)) == [1, 2, 3]  # a log a round, of few figures
    assert callback.plan.parameters_after == num_parameters(trainer.model)
    entries = [entry for entry in trainer.state.log_history if "pruning/round" in entry]
    assert all(len(entry) < 8 for entry in entries)
    refused(lambda: SpectralPruningCallback(pruning_args(), target_reduction=0.3), "Both `args` and `target_reduction`")
    refused(lambda: SpectralPruningCallback(schedule="cubical"), "`cubical`", "`cubic`")
    refused(lambda: SpectralPruningCallback(TrainingArguments(str(tmp_path))), "`TrainingArguments`")


@pytest.mark.slow
def test_a_callback_that_comes_late_or_again_is_told(batches, tmp_path, caplog):
    late = SpectralPruningCallback(pruning_args(), batches)

    class AddsOne(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                trainer.add_callback(late)

    trainer = make_trainer(tiny_model(), tmp_path, [AddsOne()])
    refused(trainer.train, "while the training was under way")
    again = SpectralPruningCallback(pruning_args(), batches)
    make_trainer(tiny_model(), tmp_path, [again]).train()
    hf_logging.enable_propagation()
    make_trainer(tiny_model(), tmp_path, [again]).train()
    hf_logging.disable_propagation()
    assert "has pruned another model before" in caplog.text


def test_training_that_stops_early_is_told(batches, tmp_path, caplog):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

    callback = SpectralPruningCallback(pruning_args(), batches, schedule=PruningSchedule("one_shot", start_step=5))
    hf_logging.enable_propagation()
    make_trainer(tiny_model(), tmp_path, [callback, Stop()]).train()
    hf_logging.disable_propagation()
    assert "they did not run" in caplog.text
    assert callback.plan is None


def unknown_family():
    config = MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=1)
    return MambaForCausalLM(config)


BAD = {
    "unknown family": (unknown_family, {}, {}, {}, "`mamba` is not a known family"),
    "ends after training": (tiny_model, {}, {"schedule": PruningSchedule("linear", end_step=7)}, {}, "ends at step 7.*at step 6"),
    "starts after training": (tiny_model, {}, {"schedule": PruningSchedule(start_epoch=2)}, {}, "`start_epoch`"),
    "starts after its end": (tiny_model, {}, {"schedule": PruningSchedule("cubic", start_step=5, end_step=5)}, {}, "end later"),
    "mistral": (tiny_model, {"stock_class": "mistral", "layout": "uniform"}, {}, {}, "makes a new model"),
    "criterion": (tiny_model, {"criterion": "spektral"}, {}, {}, "`spectral`"),
    "restored": (tiny_model, {}, {}, {"restore_callback_states_from_checkpoint": True}, "Leave it off"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_work_is_told_before_any_step(case, batches, tmp_path):
    build, pruning, options, training, message = BAD[case]
    model = build()
    before = copy.deepcopy(model.state_dict())

    def run():
        callback = SpectralPruningCallback(pruning_args(**pruning), **{"calibration_dataset": batches} | options)
        make_trainer(model, tmp_path, [callback], **training).train()

    with pytest.raises(ValueError, match=message) as raised:
        run()
    assert "\n" not in str(raised.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "sometimes"}, "`one_shot`"),
        ({"kind": "one_shot", "end_step": 3}, "has no end"),
        ({"kind": "end", "start_epoch": 1}, "has no start"),
        ({"kind": "linear", "start_step": 1, "start_epoch": 1}, "Give one of them"),
        ({"kind": "linear", "start_step": -1}, "not be negative"),
    ],
    ids=str,
)
def test_schedules_that_cannot_work_are_told(fields, message):
    with pytest.raises(ValueError, match=message):
        PruningSchedule(**fields)


class Masking(SpectralPruningCallback):
    """Masks as in data-parallel training, in one process."""

    def check(self, *args):
        super().check(*args)
        self._spread = True


Masking.__name__ = SpectralPruningCallback.__name__


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_masked_training_ends_like_cut_training(family, batches, tmp_path):
    models = []
    for kind in (SpectralPruningCallback, Masking):
        if family == "llama":
            model = tiny_model()
        else:
            model = tiny_encoder("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        args = pruning_args(num_rounds=2, allocation="scores")
        callback = kind(args, batches, schedule=PruningSchedule("cubic", end_step=4))
        make_trainer(model, tmp_path, [callback], optim="sgd", learning_rate=0.05).train()
        models.append((model, callback.plan))
    assert models[0][1].kept == models[1][1].kept
    for (name, one), other in zip(models[0][0].named_parameters(), models[1][0].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("resumed", only([Masking], [SpectralPruningCallback, Masking]))
def test_run_that_masked_is_resumed_with_or_without_masks(resumed, batches, tmp_path):
    """Its checkpoints have the old size, and their weights already give the pruned function."""
    schedule = PruningSchedule("linear", start_step=1, end_step=5)
    every = {"save_strategy": "steps", "save_steps": 1, "optim": "sgd", "learning_rate": 0.05}
    whole, parts = tiny_model(), tiny_model()
    expected = SpectralPruningCallback(pruning_args(num_rounds=2), batches, schedule=schedule)
    make_trainer(whole, tmp_path / "whole", [expected], **every).train()
    masking = Masking(pruning_args(num_rounds=2), batches, schedule=schedule)
    make_trainer(tiny_model(), tmp_path / "masked", [masking], **every).train()
    assert widths(AutoModelForCausalLM.from_pretrained(tmp_path / "masked" / "checkpoint-4")) == widths(tiny_model())
    cut = AutoModelForCausalLM.from_pretrained(tmp_path / "whole" / "checkpoint-4")
    wide = AutoModelForCausalLM.from_pretrained(tmp_path / "masked" / "checkpoint-4")
    torch.testing.assert_close(logits(wide, random_batch()), logits(cut, random_batch()), rtol=1e-4, atol=1e-4)
    callback = resumed(pruning_args(num_rounds=2), batches, schedule=schedule)
    trainer = make_trainer(parts, tmp_path / "masked", [callback], **every)
    trainer.train(resume_from_checkpoint=str(tmp_path / "masked" / "checkpoint-4"))
    assert callback.plan.kept == expected.plan.kept
    for (name, one), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)


def test_cut_checkpoint_cannot_be_resumed_with_masks(batches, tmp_path):
    every = {"save_strategy": "steps", "save_steps": 2}
    make_trainer(tiny_model(), tmp_path, [SpectralPruningCallback(pruning_args(), batches)], max_steps=2, **every).train()
    trainer = make_trainer(tiny_model(), tmp_path, [Masking(pruning_args(), batches)], max_steps=4, **every)
    with pytest.raises(ValueError, match="Resume it in a single process"):
        trainer.train(resume_from_checkpoint=True)


def test_masked_units_get_no_gradient_and_add_nothing():
    model = tiny_model()
    plan = plan_of_every_other_unit(model)
    kept = {key: plan.kept_index(key) for key in plan.kept}
    batch = random_batch()
    narrow = apply_plan(copy.deepcopy(model), plan)
    with masked(model, kept):
        zero_masked(model, kept)
        model(**batch, labels=batch["input_ids"]).loss.backward()
    narrow(**batch, labels=batch["input_ids"]).loss.backward()
    norms = [nn.utils.clip_grad_norm_(part.parameters(), 1e9) for part in (model, narrow)]
    torch.testing.assert_close(norms[0], norms[1])
    assert torch.equal(model.model.layers[0].mlp.gate_proj.weight.grad[1::2], torch.zeros(12, 32))
    # Without the masks the zeroed columns alone give the same function, so that checkpoints say what was trained.
    torch.testing.assert_close(logits(model, batch), logits(narrow, batch))


# ---- training that begins again, and runs that are resumed otherwise


def half(**fields) -> SpectralPruningArguments:
    return pruning_args(target_reduction=0.5, units=["ffn"], layout="uniform", **fields)


@pytest.mark.parametrize("kind", only([SpectralPruningCallback], [SpectralPruningCallback, Masking]))
def test_second_training_does_not_prune_again(kind, batches, tmp_path, caplog):
    """FFN 24 -> 12, as was asked; rounds that the first training has run are not due again."""
    model = tiny_model()
    callback = kind(half(num_rounds=2), batches, schedule=PruningSchedule("linear", start_step=0, end_step=4))
    trainer = make_trainer(model, tmp_path, [callback])
    trainer.train()
    plan, before = callback.plan.to_json(), copy.deepcopy(model.state_dict())
    hf_logging.enable_propagation()
    trainer.train()
    hf_logging.disable_propagation()
    assert "Use a new callback" in caplog.text
    assert callback.plan.to_json() == plan
    assert model.config.intermediate_size == 12
    assert parameters_at_steps(trainer) == {}
    assert not any(torch.equal(value, before[name]) for name, value in model.named_parameters())
    # A new callback prunes further.
    make_trainer(model, tmp_path, [SpectralPruningCallback(half(min_ffn_units=4), batches)]).train()
    assert model.config.intermediate_size < 12


@pytest.mark.parametrize("kind", only([SpectralPruningCallback], [SpectralPruningCallback, Masking]))
@pytest.mark.parametrize("rounds_before", only([2], [1, 2]))
def test_smaller_batch_after_running_out_of_memory_goes_on(kind, rounds_before, batches, tmp_path):
    """`auto_find_batch_size` begins training anew with the model as it stands: rounds that were run are not run again."""

    class Fails(Trainer):
        failed = False

        def training_step(self, *args, **kwargs):
            if not self.failed and self.state.global_step == rounds_before:
                self.failed = True
                raise RuntimeError("CUDA out of memory. Tried to allocate")
            return super().training_step(*args, **kwargs)

    model = tiny_model()
    callback = kind(half(num_rounds=2), batches, schedule=PruningSchedule("linear", start_step=0, end_step=2))
    trainer = make_trainer(model, tmp_path, [callback], auto_find_batch_size=True)
    trainer.__class__ = Fails
    trainer.train()
    assert trainer.failed and trainer.state.global_step == 6
    assert model.config.intermediate_size == 12
    assert {len(kept) for kept in callback.plan.kept.values()} == {12}
    assert list(parameters_at_steps(trainer)) == [2][: 2 - rounds_before]


@pytest.mark.parametrize("kind", only([SpectralPruningCallback], [SpectralPruningCallback, Masking]))
def test_another_model_for_the_same_callback_is_pruned_from_the_start(kind, batches, tmp_path):
    """As in a search for hyperparameters, where each trial makes the model anew."""
    callback = kind(half(), batches)
    options = {"data_collator": causal_collator(), "train_dataset": text_rows()}
    arguments = TrainingArguments(str(tmp_path), max_steps=1, report_to="none", disable_tqdm=True, use_cpu=True)
    trainer = Trainer(args=arguments, model_init=lambda: tiny_model(), callbacks=[callback], **options)
    for _ in range(2):
        trainer.train()
        assert trainer.model.config.intermediate_size == 12
        assert list(parameters_at_steps(trainer)) == [0]


def with_own_optimizer(model, folder, callback, **fields) -> Trainer:
    """A Trainer whose optimizer was built by the user, before the Trainer."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    trainer = make_trainer(model, folder, [callback], **{"save_strategy": "steps", "save_steps": 1} | fields)
    trainer.optimizer, trainer.lr_scheduler = optimizer, schedule
    return trainer


@pytest.mark.parametrize("save_only_model", only([False], [False, True]))
def test_own_optimizer_trains_the_resumed_model(save_only_model, batches, tmp_path):
    def make(folder):
        model = tiny_model()
        schedule = PruningSchedule("linear", start_step=0, end_step=5)
        callback = SpectralPruningCallback(half(num_rounds=2), batches, schedule=schedule)
        return model, with_own_optimizer(model, folder, callback, save_only_model=save_only_model)

    whole, trainer = make(tmp_path)
    trainer.train()
    resumed, trainer = make(tmp_path)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    held = {parameter for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert held == set(resumed.parameters()) == set(trainer.optimizer.state)
    at_3 = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-3").state_dict()
    for (name, one), other in zip(resumed.named_parameters(), whole.parameters(), strict=True):
        assert one.shape != at_3[name].shape or not torch.equal(one, at_3[name]), name
        assert torch.equal(one, other) or save_only_model, name


def test_replaced_parameters_keep_a_checkpoints_state_and_lose_that_of_another_shape():
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    one_step(model, optimizer, random_batch())
    replacements = Replacements()
    for _ in range(2):  # replaced twice, and so found at the end of the chain
        groups = unit_groups(model)
        kept = {group.key: tuple(range(group.size // 2)) for group in groups}
        plan = PruningPlan("llama", {group.key: group.size for group in groups}, kept, 1, 0)
        with replacements.watching(model, plan):
            apply_plan(model, plan)
    up, down = model.model.layers[0].mlp.up_proj.weight, model.model.layers[0].mlp.down_proj.weight
    old = next(value for value in optimizer.state if value.shape == (24, 32))
    optimizer.state[old]["exp_avg"] = optimizer.state[old]["exp_avg_sq"] = torch.ones(6, 32)  # as a checkpoint has it
    replacements.carry_over(optimizer)
    assert {parameter for group in optimizer.param_groups for parameter in group["params"]} == set(model.parameters())
    assert len([value for value in optimizer.state if value.shape == up.shape]) == 1
    assert down not in optimizer.state
    assert model.model.norm.weight in optimizer.state


def test_parameters_that_the_optimizer_lacks_are_told(batches, tmp_path, caplog):
    """The repair by biases adds them after a user's optimizer was built."""
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    callback = SpectralPruningCallback(half(compensation="bias"), batches)
    trainer = make_trainer(model, tmp_path, [callback], max_steps=1)
    trainer.optimizer = optimizer
    hf_logging.enable_propagation()
    trainer.train()
    hf_logging.disable_propagation()
    assert "does not hold" in caplog.text and "self_attn.q_proj.bias" in caplog.text


@pytest.mark.parametrize("kind", only([Masking], [SpectralPruningCallback, Masking]))
def test_callback_that_a_dense_run_gets_when_it_is_resumed_catches_up(kind, batches, tmp_path, caplog):
    every = {"save_strategy": "steps", "save_steps": 3}
    make_trainer(tiny_model(), tmp_path, max_steps=3, **every).train()
    model = tiny_model()
    callback = kind(half(num_rounds=4), batches, schedule=PruningSchedule("linear", start_step=0, end_step=4))
    trainer = make_trainer(model, tmp_path, [callback], **every)
    hf_logging.enable_propagation()
    trainer.train(resume_from_checkpoint=True)
    hf_logging.disable_propagation()
    assert "The schedule has rounds 1 to 3 up to step 3" in caplog.text
    assert list(parameters_at_steps(trainer)) == [3, 4]
    assert model.config.intermediate_size == 12
    assert callback.plan.parameters_after == num_parameters(model)


def test_resume_with_other_options_is_refused(batches, tmp_path):
    every = {"save_strategy": "steps", "save_steps": 2}
    schedule = PruningSchedule("linear", start_step=0, end_step=4)
    first = SpectralPruningCallback(half(num_rounds=2), batches, schedule=schedule)
    make_trainer(tiny_model(), tmp_path, [first], max_steps=4, **every).train()
    other = SpectralPruningCallback(half(num_rounds=4), batches, schedule=schedule)
    trainer = make_trainer(tiny_model(), tmp_path, [other], **every)
    with pytest.raises(ValueError, match=r"`num_rounds` is 4.*began with 2") as raised:
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert "\n" not in str(raised.value)


def test_checkpoint_of_an_older_version_is_resumed(batches, tmp_path):
    """It tells neither the last round nor the options."""

    class Old(SpectralPruningCallback):
        def state(self):
            state = super().state()
            return state | {"attributes": {name: state["attributes"][name] for name in ("plan", "final_sizes")}}

    Old.__name__ = SpectralPruningCallback.__name__
    every = {"save_strategy": "steps", "save_steps": 2}
    schedule = PruningSchedule("linear", start_step=0, end_step=4)
    whole = tiny_model()
    make_trainer(whole, tmp_path, [Old(half(num_rounds=2), batches, schedule=schedule)], **every).train()
    model = tiny_model()
    trainer = make_trainer(model, tmp_path, [SpectralPruningCallback(half(num_rounds=2), batches, schedule=schedule)], **every)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert list(parameters_at_steps(trainer)) == [2, 4]
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), whole.parameters(), strict=True))


def wrapped_by_peft():
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(tiny_model(), peft.LoraConfig(target_modules=["q_proj"]))


WRAPPED = {
    "adapters": (wrapped_by_peft, "merge_and_unload"),
    "compiled": (lambda: torch.compile(tiny_model()), "before `torch.compile`"),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_model_inside_another_object_is_refused(case, batches, tmp_path):
    build, message = WRAPPED[case]
    model = build()
    callback = SpectralPruningCallback(pruning_args(), batches)
    for make in (lambda: make_trainer(model, tmp_path, [callback]), lambda: SpectralPruner(model, pruning_args(), batches)):
        with pytest.raises(ValueError, match=message) as raised:
            make()
        assert "\n" not in str(raised.value)


def test_model_with_merged_adapters_is_pruned(batches):
    SpectralPruner(wrapped_by_peft().merge_and_unload(), pruning_args(), batches).prune()


def test_raw_text_is_cut_to_the_models_positions(tokenizer, tmp_path):
    callback = SpectralPruningCallback(half(), ["w3 w4 " * 300], tokenizer)
    trainer = make_trainer(tiny_encoder("bert", max_position_embeddings=64), tmp_path, [callback], max_steps=1)
    trainer.train()
    assert trainer.model.config.intermediate_size == 12


@pytest.mark.slow
def test_moments_are_dropped_before_the_model_settles(batches, tmp_path, monkeypatch):
    """A pass for batch norms, and training after it, need the room."""

    def settle(model, calibration):
        seen.append(num_moments())

    seen = [num_moments()]
    monkeypatch.setattr(removing, "settle", settle)
    make_trainer(tiny_model(), tmp_path, [SpectralPruningCallback(half(), batches)], max_steps=1).train()
    assert len(seen) == 2 and seen[0] == seen[1]


@pytest.mark.slow
def test_a_callback_that_comes_too_late_to_be_resumed_is_told(batches, tmp_path):
    """The Trainer loads a checkpoint before it tells any callback: only one that was there at first can narrow the model."""
    for fields, options in (({"save_strategy": "steps"}, {}), ({}, {"compensation": "bias"})):
        model = tiny_model()
        trainer = make_trainer(model, tmp_path, **fields)
        trainer.add_callback(SpectralPruningCallback(pruning_args(**options), batches))
        refused(trainer.train, "`attach(trainer)`")
        assert num_parameters(model) == num_parameters(tiny_model())
    trainer = make_trainer(tiny_model(), tmp_path, save_strategy="steps", save_steps=3)
    SpectralPruningCallback(pruning_args(), batches).attach(trainer).args.num_rounds = 1
    trainer.train()
    again = make_trainer(tiny_model(), tmp_path, save_strategy="steps", save_steps=3, max_steps=8)
    SpectralPruningCallback(pruning_args(), batches).attach(again)
    again.train(resume_from_checkpoint=True)
    assert widths(again.model) == widths(trainer.model)


def test_a_model_made_anew_is_told_of_what_cannot_be(batches, tmp_path, caplog):
    def trainer(compensation, **fields):
        callback = SpectralPruningCallback(pruning_args(compensation=compensation), batches)
        made = make_trainer(tiny_model(), tmp_path, [], **fields)
        return Trainer(
            model_init=lambda: tiny_model(),
            args=made.args,
            train_dataset=made.train_dataset,
            data_collator=made.data_collator,
            callbacks=[callback],
        )

    refused(trainer("bias").train, "`model_init`")
    hf_logging.enable_propagation()
    trainer("none", save_strategy="steps").train()
    hf_logging.disable_propagation()
    assert "cannot be resumed" in caplog.text


@pytest.mark.slow
def test_a_resumed_training_with_other_data_or_half_a_checkpoint_is_refused(batches, tmp_path):
    def trainer(data):
        callback = SpectralPruningCallback(
            pruning_args(num_rounds=2), data, schedule=PruningSchedule("linear", start_step=1, end_step=5)
        )
        return make_trainer(tiny_model(), tmp_path, [callback], save_strategy="steps", save_steps=3)

    trainer(batches).train()
    shutil.rmtree(tmp_path / "checkpoint-6")
    refused(lambda: trainer(batches[:3]).train(resume_from_checkpoint=True), "`calibration_dataset` is ", "began with")
    (tmp_path / "checkpoint-3" / "optimizer.pt").unlink()
    refused(lambda: trainer(batches).train(resume_from_checkpoint=True), "`optimizer.pt`", "half-written")


def test_a_dense_loss_that_is_no_number_ends_the_training_before_a_cut(batches, tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    trainer = make_trainer(model, tmp_path, [SpectralPruningCallback(pruning_args(criterion="magnitude"), batches)])
    refused(trainer.train, "dense model is nan")
    assert num_parameters(model) == num_parameters(tiny_model())
