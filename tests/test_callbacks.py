"""Pruning inside a Trainer: schedules, the optimizer's state, resume, best model, several processes, errors."""

from __future__ import annotations

import copy
from fractions import Fraction

import pytest
import torch
from conftest import logits, random_batch, tiny_encoder, tiny_model
from torch import nn
from transformers import AutoModelForCausalLM, OPTConfig, OPTForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging as hf_logging

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.architectures import unit_groups
from hf_spectral_prune.callbacks import SpectralPruningCallback
from hf_spectral_prune.evaluation import num_parameters
from hf_spectral_prune.planning import PruningPlan
from hf_spectral_prune.schedule import PruningSchedule
from hf_spectral_prune.surgery import apply_plan, masked, optimizer_follows, settle_class, zero_masked
from hf_spectral_prune.training_rows import causal_collator


def text_rows(count: int = 32, length: int = 12, seed: int = 0) -> list[dict]:
    batch = random_batch(count, length, seed)
    return [{"input_ids": ids} for ids in batch["input_ids"]]


def pruning_args(**fields) -> SpectralPruningArguments:
    defaults = {"disable_tqdm": True, "target_reduction": 0.3, "target_scope": "prunable", "round_to": 4, "min_ffn_units": 4}
    return SpectralPruningArguments(**defaults | {"criterion": "energy", "layout": "per_layer"} | fields)


def make_trainer(model, folder, callbacks=(), **fields) -> Trainer:
    defaults = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    options = {"data_collator": causal_collator()} if "ForCausalLM" in type(model).__name__ else {}
    rows = text_rows() if options else [row | {"label": index % 2} for index, row in enumerate(text_rows())]
    return Trainer(
        model=model,
        args=TrainingArguments(**defaults | fields),
        train_dataset=rows,
        eval_dataset=rows[:8],
        callbacks=list(callbacks),
        **options,
    )


def widths(model) -> list[int]:
    return [group.size for group in unit_groups(model)]


def parameters_at_steps(trainer) -> dict[int, int]:
    return {entry["step"]: entry["pruning/parameters"] for entry in trainer.state.log_history if "pruning/parameters" in entry}


@pytest.mark.parametrize(
    ("schedule", "num_rounds", "steps"),
    [
        (PruningSchedule("one_shot"), 2, [0]),
        (PruningSchedule("one_shot", start_step=3), 1, [3]),
        (PruningSchedule("one_shot", start_epoch=0.5), 1, [4]),
        (PruningSchedule("linear", start_step=1, end_step=5), 4, [2, 3, 4, 5]),
        (PruningSchedule("cubic"), 3, [1, 2, 3]),
        (PruningSchedule("end"), 2, [6]),
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


def test_pruning_before_the_first_step_is_what_the_pruner_does(batches, tmp_path):
    """With a learning rate of zero the trained model is the pruner's, bit for bit."""
    args = pruning_args(num_rounds=3, layout="uniform", compensation="least_squares")
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


@pytest.mark.parametrize("family", ["llama-biases", "qwen3", "bert", "modernbert-biases"])
def test_adam_moments_follow_their_units(family):
    """Every entry of the state is the one of the same weight before the cut, by exact index."""
    if "bert" in family:
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
    [
        {},
        {"gradient_accumulation_steps": 2},
        {"bf16": True},
        {"gradient_checkpointing": True},
        {"optim": "adafactor"},
        {"lr_scheduler_type": "cosine", "max_grad_norm": 0.1},
    ],
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
@pytest.mark.parametrize("stop", [2, 3, 4])
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
    class Logger(TrainerCallback):
        def __init__(self):
            self.logs = []

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.logs.append((state.global_step, dict(logs)))

    logger = Logger()
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
    config = OPTConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=1, ffn_dim=32, num_attention_heads=4, word_embed_proj_dim=32
    )
    return OPTForCausalLM(config)


BAD = {
    "unknown family": (unknown_family, {}, {}, {}, "`opt` is not a known family"),
    "no calibration": (tiny_model, {}, {"calibration_dataset": None}, {}, "no calibration data"),
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

    def _check(self, *args):
        super()._check(*args)
        self._masking = True


Masking.__name__ = SpectralPruningCallback.__name__


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


@pytest.mark.parametrize("resumed", [SpectralPruningCallback, Masking])
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
