"""Whole runs on tiny models: targets, rounds, seeds, callbacks, resume, compensation, errors."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from conftest import FAMILIES, FIXED_HEADS, logits, num_moments, random_batch, tiny_encoder, tiny_model
from datasets import Dataset
from products import each_once, only
from transformers import TrainerCallback

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.calibration import collect_moments
from hf_spectral_prune.criteria.calibrate import Evidence
from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.models.families import unit_groups
from hf_spectral_prune.planning.damage import SuffixLoss, loss_curves
from hf_spectral_prune.surgery import apply_plan, settle_class
from hf_spectral_prune.surgery.cut import repairs
from hf_spectral_prune.surgery.narrow import cut_group
from hf_spectral_prune.surgery.plan import PruningPlan


def make_pruner(model, batches, **fields) -> SpectralPruner:
    callbacks = fields.pop("callbacks", None)
    eval_dataset = fields.pop("eval_dataset", None)
    defaults = {"disable_tqdm": True, "target_reduction": 0.3, "target_scope": "prunable", "round_to": 4, "min_ffn_units": 4}
    defaults["compensation"] = "none"  # a plan alone then says what the weights are
    args = SpectralPruningArguments(**defaults | fields)
    return SpectralPruner(model, args, batches, eval_dataset, callbacks=callbacks)


@pytest.mark.parametrize(
    ("family", "layout"),
    each_once((name, layout) for name in FAMILIES for layout in ("uniform", "per_layer")[name in FIXED_HEADS :]),
)
def test_target_is_met_on_the_rewritten_model_and_never_overshot(family, layout, batches):
    model = tiny_model(family)
    before = num_parameters(model)
    groups = unit_groups(model)
    prunable = sum(group.size * group.parameters_per_unit for group in groups)
    output = make_pruner(model, batches, layout=layout).prune()
    after = num_parameters(output.model)
    step = 3 * 4 * groups[0].parameters_per_unit if layout == "uniform" else groups[1].parameters_per_unit
    assert 0 <= after - (before - 0.3 * prunable) <= step
    assert output.metrics["parameters_after"] == output.plan.parameters_after == after
    assert output.metrics["reduction"] == 1 - after / before


@pytest.mark.parametrize("criterion", only(["spectral", "random"], ["spectral", "energy", "magnitude", "random"]))
def test_same_run_same_plan_bit_for_bit(criterion, batches):
    plans = []
    for _ in range(2):
        model = tiny_model()
        output = make_pruner(model, batches, criterion=criterion, num_rounds=3, layout="per_layer").prune()
        plans.append((output.plan.to_json(), logits(output.model, random_batch())))
    assert plans[0][0] == plans[1][0]
    assert torch.equal(plans[0][1], plans[1][1])


def test_another_seed_gives_another_random_plan(batches):
    plans = [make_pruner(tiny_model(), batches, criterion="random", seed=seed).prune().plan.kept for seed in (1, 2)]
    assert plans[0] != plans[1]


@pytest.mark.parametrize("recalibrate_every", [1, 2, 4])
def test_composed_plan_of_all_rounds_gives_the_same_model(recalibrate_every, batches):
    model = tiny_model()
    original = copy.deepcopy(model)
    output = make_pruner(model, batches, num_rounds=4, recalibrate_every=recalibrate_every, layout="per_layer").prune()
    again = settle_class(apply_plan(original, output.plan))
    assert torch.equal(logits(again, random_batch()), logits(output.model, random_batch()))


def test_analytic_rounds_equal_fresh_moments_inside_the_first_layer(batches):
    """Cutting a layer leaves the signals of its other units unchanged, so the sub-block is what a new pass would see."""
    from hf_spectral_prune.calibration import collect_moments

    model = tiny_model()
    group = unit_groups(model, ["ffn"])[0]
    moments = collect_moments(model, [group], batches, progress=False)[group.key]
    kept = torch.tensor([0, 3, 4, 9, 10, 11, 20, 23])
    plan = PruningPlan("llama", {group.key: 24}, {group.key: tuple(kept.tolist())}, num_parameters(model), 0)
    apply_plan(model, plan)
    fresh = collect_moments(model, [unit_groups(model, ["ffn"])[0]], batches, progress=False)[group.key]
    for old, new in zip(moments.select(group, kept), fresh, strict=True):
        # Float32 products of the same numbers in blocks of other sizes.
        torch.testing.assert_close(old.second_moment, new.second_moment, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(old.sum, new.sum, rtol=1e-5, atol=1e-4)


class Recorder(TrainerCallback):
    def __init__(self):
        self.events = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.events.append("begin")
        assert model is not None

    def on_step_end(self, args, state, control, **kwargs):
        self.events.append(f"step {state.global_step} of {state.max_steps}")

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.events.append(f"log {sorted(logs)}")

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.events.append("evaluate")

    def on_train_end(self, args, state, control, **kwargs):
        self.events.append("end")


def test_callbacks_see_a_round_as_a_step(batches):
    recorder = Recorder()
    pruner = make_pruner(tiny_model(), batches, num_rounds=2, callbacks=[recorder], eval_dataset=[random_batch(4, 32, 9)])
    output = pruner.prune()
    steps = [event for event in recorder.events if event.startswith("step")]
    assert steps == ["step 1 of 2", "step 2 of 2"]
    assert recorder.events.index("begin") < recorder.events.index("end")
    assert "log ['parameters', 'reduction']" in recorder.events
    assert [entry["parameters"] for entry in pruner.state.log_history if "parameters" in entry][-1] == num_parameters(
        output.model
    )
    assert output.report["metrics_before"]["before_perplexity"] != output.report["metrics_after"]["after_perplexity"]


def test_a_callback_can_stop_the_run_at_a_sound_model(batches):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

    model = tiny_model()
    output = make_pruner(
        model, batches, num_rounds=4, target_reduction=0.6, allocation="proportional", callbacks=[Stop()]
    ).prune()
    assert output.metrics["reduction"] > 0
    assert type(output.model).__name__ == "LlamaForCausalLM"
    assert output.model.config.intermediate_size % 4 == 0
    output.model.config.validate()


def test_callback_methods_add_pop_and_remove(batches):
    pruner = make_pruner(tiny_model(), batches)
    recorder = Recorder()
    pruner.add_callback(recorder)
    assert pruner.pop_callback(Recorder) is recorder
    pruner.add_callback(recorder)
    pruner.remove_callback(recorder)
    assert pruner.pop_callback(Recorder) is None


@pytest.mark.parametrize("compensation", only(["bias", "sequential"], ["none", "least_squares", "bias", "sequential"]))
def test_resumed_run_ends_with_the_same_plan_and_weights(compensation, batches, tmp_path):
    options = {
        "num_rounds": 4,
        "recalibrate_every": 2,
        "layout": "per_layer",
        "compensation": compensation,
        "save_strategy": "steps",
        "output_dir": str(tmp_path / "out"),
    }
    whole = make_pruner(tiny_model(), batches, **options).prune()

    class Killed(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise KeyboardInterrupt

    options["output_dir"] = str(tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        make_pruner(tiny_model(), batches, **options, callbacks=[Killed()]).prune()
    assert (tmp_path / "killed" / "checkpoint-2").is_dir()
    pruner = make_pruner(tiny_model(), batches, **options)
    resumed = pruner.prune(resume_from_checkpoint=True)
    assert resumed.plan.kept == whole.plan.kept
    assert torch.equal(logits(resumed.model, random_batch()), logits(whole.model, random_batch()))
    assert [entry["step"] for entry in pruner.state.log_history] == [1, 2, 3, 4]


def test_resume_without_a_checkpoint_says_so(batches, tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        make_pruner(tiny_model(), batches, output_dir=str(tmp_path)).prune(resume_from_checkpoint=True)


@pytest.mark.parametrize("family", ["llama", "llama-biases", "qwen3"])
def test_bias_repair_restores_the_mean_output_of_the_first_cut_layer(family, batches):
    """With the mean of the removed contributions added, an FFN's mean output over the calibration set is unchanged."""
    original, repaired = tiny_model(family), tiny_model(family)
    layout = "uniform" if family.startswith("llama") else "per_layer"
    plan = make_pruner(repaired, batches, compensation="bias", units=["ffn"], layout=layout).prune().plan
    plain = apply_plan(copy.deepcopy(original), plan, check_weights=False)
    first = next(layer for layer in range(3) if len(plan.kept[f"layers.{layer}.ffn"]) < 24)

    def mean_output(model):
        outputs = []
        mlp = model.model.layers[first].mlp
        handle = mlp.register_forward_hook(lambda _module, _args, output: outputs.append(output.flatten(0, 1)))
        for batch in batches:
            logits(model, batch)
        handle.remove()
        return torch.cat(outputs).double().mean(0)

    error = (mean_output(repaired) - mean_output(original)).norm()
    assert error < 1e-5
    assert (mean_output(plain) - mean_output(original)).norm() > 100 * error


def test_bias_repair_of_a_stock_class_without_biases_says_what_to_do(batches):
    with pytest.raises(ValueError, match="per_layer"):
        make_pruner(tiny_model("mistral"), batches, compensation="bias").prune()


def test_repairs_bring_the_outputs_nearer(batches):
    original = tiny_model()
    expected = logits(original, batches[0])
    errors = []
    for compensation in ("none", "least_squares", "sequential"):
        model = make_pruner(copy.deepcopy(original), batches, compensation=compensation, units=["ffn"]).prune().model
        errors.append(float((logits(model, batches[0]) - expected).norm()))
    assert errors[2] < errors[1] < errors[0]


def test_the_repair_by_default_is_sequential_and_the_report_names_it(batches):
    found = {}
    for compensation in ("auto", "sequential"):
        pruner = make_pruner(tiny_model(), batches, compensation=compensation)
        found[compensation] = logits(pruner.prune().model, random_batch())
        assert pruner.output.report.arguments["compensation"] == "sequential"
    assert torch.equal(found["auto"], found["sequential"])


def test_without_calibration_data_nothing_is_repaired_by_default():
    pruner = make_pruner(tiny_model(), None, criterion="magnitude", compensation="auto", allocation="proportional")
    assert pruner.prune().report.arguments["compensation"] == "none"
    with pytest.raises(ValueError, match="`compensation` `sequential`"):
        make_pruner(tiny_model(), None, criterion="magnitude", compensation="sequential", allocation="proportional")


def test_repair_after_loss_aware_scores_uses_the_activations(batches):
    """The same plan repaired with the moments of the activations gives the same weights, whatever the scores came from."""
    from hf_spectral_prune.calibration import collect_moments

    original = tiny_model()
    fields = {"criterion_args": {"signals": "loss"}, "compensation": "least_squares", "units": ["ffn"]}
    output = make_pruner(copy.deepcopy(original), batches, **fields).prune()
    moments = collect_moments(original, unit_groups(original, ["ffn"]), batches, progress=False)
    again = apply_plan(original, output.plan, compensation="least_squares", moments=moments)
    assert torch.equal(logits(again, random_batch()), logits(output.model, random_batch()))


def test_score_and_plan_leave_the_model_alone(batches):
    model = tiny_model()
    before = logits(model, random_batch())
    pruner = make_pruner(model, batches)
    scores, plan = pruner.score(), pruner.plan()
    assert {key: len(score) for key, score in scores.items()} == {group.key: group.size for group in unit_groups(model)}
    assert torch.equal(logits(model, random_batch()), before)
    assert make_pruner(model, batches).prune().plan.kept == plan.kept


@pytest.mark.parametrize("allocation", ["proportional", "scores", "loss_curves"])
def test_every_allocation_works_for_uniform(allocation, batches):
    output = make_pruner(tiny_model(), batches, allocation=allocation).prune()
    assert type(output.model).__name__ == "LlamaForCausalLM"


def test_loss_curves_of_repaired_layers_are_those_of_the_repaired_model(batches):
    model = tiny_model()
    group = unit_groups(model, ["ffn"])[1]
    moments = collect_moments(model, [group], batches, progress=False)
    scores = {group.key: torch.arange(group.size, dtype=torch.float64)}
    before = logits(model, random_batch())
    (curve,) = loss_curves(model, [group], scores, batches, repair=moments, fractions=(0.5,), progress=False).values()
    assert torch.equal(logits(model, random_batch()), before)
    half = group.size // 2
    clean = SuffixLoss(model, batches).clean
    kept = {group.key: torch.arange(half, group.size)}
    cut_group(model, group, kept[group.key], repairs(model, kept, "least_squares", moments)[group.key])
    assert float(curve[half]) == pytest.approx(max(SuffixLoss(model, batches).clean - clean, 0.0), abs=1e-6)


def test_loss_curves_are_smooth_between_their_measurements(batches, monkeypatch):
    model = tiny_model()
    group = unit_groups(model, ["ffn"])[0]
    added = {group.size: 0.0, group.size * 3 // 4: 1.0, group.size // 2: 4.0, group.size // 4: 9.0}  # the square of the share
    monkeypatch.setattr(SuffixLoss, "__call__", lambda self, layer, kept: self.clean + added[len(kept[group.key])])
    scores = {group.key: torch.arange(group.size, dtype=torch.float64)}
    (curve,) = loss_curves(model, [group], scores, batches, fractions=(0.25, 0.5, 0.75), progress=False).values()
    assert {group.size - removed: float(curve[removed]) for removed in range(0, group.size, group.size // 4)} == pytest.approx(
        added
    )
    steps = curve.diff()
    assert bool((steps >= 0).all())
    assert float(steps[group.size // 4]) > 1.5 * float(steps[0])  # a later unit costs more than an earlier one
    assert len(set(steps[: group.size // 4].tolist())) > 1


def test_loss_aware_scores_rank_over_all_layers(batches):
    fields = {"layout": "per_layer", "allocation": "scores", "criterion_args": {"signals": "loss"}}
    output = make_pruner(tiny_model(), batches, **fields).prune()
    assert len({len(kept) for key, kept in output.plan.kept.items() if key.endswith("ffn")}) > 1


def test_head_count_the_config_refuses_is_moved_and_told(batches):
    output = make_pruner(tiny_model(), batches, target_reduction=0.25).prune()
    (note,) = output.plan.notes
    assert "instead of 3" in note
    assert output.model.config.num_attention_heads in (4, 8)


def test_stock_class_mistral_takes_the_head_count_as_it_is(batches):
    output = make_pruner(tiny_model(), batches, target_reduction=0.25, stock_class="mistral").prune()
    assert type(output.model).__name__ == "MistralForCausalLM"
    assert output.model.config.num_attention_heads == 6
    assert output.plan.notes == ()


def test_a_small_model_takes_a_small_target_in_finer_steps_and_says_so(batches):
    fields = {"target_reduction": 0.05, "units": ["ffn"], "criterion": "magnitude"}
    output = make_pruner(tiny_model(), batches, round_to=None, **fields).prune()
    (note,) = output.plan.notes
    assert "FFN widths are not rounded: a step of 8" in note
    prunable = sum(group.size * group.parameters_per_unit for group in unit_groups(tiny_model(), ["ffn"]))
    assert 0.025 < (output.report.parameters_before - output.report.parameters_after) / prunable <= 0.05
    with pytest.raises(ValueError, match="smallest step"):
        make_pruner(tiny_model(), batches, round_to=8, **fields).prune()  # asked for by name, it is kept


def test_non_finite_activations_name_the_layer(batches):
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3] = torch.inf
    with pytest.raises(ValueError, match=r"layers\.1\.ffn"):
        make_pruner(model, batches, units=["ffn"]).score()
    with pytest.raises(ValueError, match="loss of the dense model is nan"):
        make_pruner(model, batches, units=["ffn"]).prune()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_reduction": 0.0}, "between 0 and 1"),
        ({"target_reduction": 1.0}, "between 0 and 1"),
        ({"target_reduction": 0.99}, "out of reach"),
        ({"target_reduction": 0.001}, "smallest step"),
        ({"criterion": "spektral"}, "`spectral`"),
        ({"criterion_args": {"num_neighbours": 3}}, "`num_neighbors`"),
        ({"criterion_args": "{"}, "not JSON"),
        ({"units": ["neurons"]}, "`ffn`"),
        ({"units": []}, "each kind once"),
        ({"layout": "mixed"}, "`per_layer`"),
        ({"num_rounds": 0}, "between 1 and 10,000"),
        ({"stock_class": "mistral", "layout": "per_layer"}, "uniform"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_options_that_cannot_work_are_told_in_one_line(fields, message, batches):
    with pytest.raises(ValueError, match=message) as raised:
        make_pruner(tiny_model(), batches, **fields).prune()
    assert "\n" not in str(raised.value)


def test_missing_calibration_is_told_before_any_work():
    with pytest.raises(ValueError, match="no calibration data"):
        SpectralPruner(tiny_model(), SpectralPruningArguments())


def test_unknown_family_names_the_nearest(batches):
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=1)
    with pytest.raises(ValueError, match="`mamba` is not a known family"):
        SpectralPruner(MambaForCausalLM(config), SpectralPruningArguments(), batches)


def test_report_is_plain_json(batches):
    output = make_pruner(tiny_model(), batches, eval_dataset=[random_batch(2, 16)]).prune()
    report = json.loads(output.report.to_json())
    for key in ("parameters_before", "parameters_after", "reduction", "timings", "peak_memory", "versions", "calibration"):
        assert report[key] is not None, key


def test_quantised_weights_are_refused_by_name(batches):
    model = tiny_model()
    weight = model.model.layers[2].mlp.up_proj.weight
    model.model.layers[2].mlp.up_proj.weight = torch.nn.Parameter(weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"layers\.2\.mlp\.up_proj.*int8.*without quantisation"):
        make_pruner(model, batches)


def test_model_marked_as_quantised_by_another_method_is_refused(batches):
    from types import SimpleNamespace

    model = tiny_model()
    model.hf_quantizer = SimpleNamespace(quantization_config=SimpleNamespace(quant_method="bitsandbytes"))
    with pytest.raises(ValueError, match="quantised \\(bitsandbytes\\)"):
        make_pruner(model, batches)


@pytest.mark.slow
def test_moments_are_held_only_while_a_round_reads_them(batches, monkeypatch):
    """They are the largest thing in memory: two sets at once, or one during the recovery, may be one too many."""
    seen, before = [], num_moments()

    def watch(name):
        original = getattr(SpectralPruner, name)

        def counted(self, *args, **kwargs):
            seen.append((name, num_moments() > before))
            return original(self, *args, **kwargs)

        monkeypatch.setattr(SpectralPruner, name, counted)

    for name in ("_calibrate", "_settle", "evaluate"):
        watch(name)
    selected = []
    select = Evidence.select
    monkeypatch.setattr(Evidence, "select", lambda self, *args: selected.append(1) or select(self, *args))
    options = {"num_rounds": 4, "recalibrate_every": 2, "criterion": "energy", "eval_dataset": [random_batch(2, 16)]}
    make_pruner(tiny_model(), batches, **options, layout="per_layer").prune()
    assert seen == [(name, False) for name in ("evaluate", "_calibrate", "_calibrate", "_settle", "evaluate")]
    assert len(selected) == 2


def test_planning_leaves_a_model_in_training_as_it_is(batches):
    model = tiny_model().train()
    make_pruner(model, batches, layout="per_layer", units=["ffn"]).plan()
    assert model.training and all(module.training for module in model.modules())


CHANGED = {
    "target_reduction": (0.3, 0.7),
    "target_scope": ("prunable", "all"),
    "units": (["ffn"], ["ffn", "heads"]),
    "num_rounds": (2, 4),
    "criterion_args": ({"num_neighbors": 3}, {"num_neighbors": 4}),
    "seed": (42, 43),
}


@pytest.mark.parametrize("name", CHANGED)
def test_resume_with_other_options_is_refused(name, batches, tmp_path):
    """The checkpoint's sizes are those of the old options, and the report would tell of the new ones."""
    old, new = CHANGED[name]
    options = {"num_rounds": 2, "save_strategy": "steps", "output_dir": str(tmp_path)}
    make_pruner(tiny_model(), batches, **options | {name: old}).prune()
    model = tiny_model()
    with pytest.raises(ValueError, match=f"`{name}` is ") as raised:
        make_pruner(model, batches, **options | {name: new}).prune(resume_from_checkpoint=True)
    assert repr(old) in str(raised.value) and repr(new) in str(raised.value) and "checkpoint-" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert num_parameters(model) == num_parameters(tiny_model())


def test_checkpoint_without_options_is_resumed(batches, tmp_path):
    """As versions before wrote it."""
    options = {"num_rounds": 2, "save_strategy": "steps", "output_dir": str(tmp_path)}
    whole = make_pruner(tiny_model(), batches, **options).prune()
    folder = tmp_path / "checkpoint-1"
    path = folder / "pruner_state.json"
    state = json.loads(path.read_text())
    assert state.pop("options")["num_rounds"] == 2
    path.write_text(json.dumps(state))
    # What decides nothing may change.
    again = make_pruner(tiny_model(), batches, **options, max_moment_gib=1).prune(resume_from_checkpoint=folder)
    assert again.plan.kept == whole.plan.kept


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_raw_text_is_cut_to_the_models_positions(family, tokenizer):
    model = tiny_encoder(family, task="ForMaskedLM", max_position_embeddings=64)
    longest = 64 if family == "bert" else 64 - model.config.pad_token_id - 1
    args = SpectralPruningArguments(disable_tqdm=True, target_reduction=0.3, target_scope="prunable", units=["ffn"], round_to=4)
    pruner = SpectralPruner(model, args, ["w3 w4 " * 300], processing_class=tokenizer)
    assert pruner.calibration.batches[0]["input_ids"].shape[1] == longest
    pruner.prune()


def test_all_labelled_rows_are_measured_on():
    seen = []

    def metrics(found):
        seen.append(len(found.label_ids))
        return {"accuracy": 0.5}

    rows = Dataset.from_list([{"input_ids": [3, 4, 5], "labels": index % 2} for index in range(300)])
    model, args = tiny_encoder(), SpectralPruningArguments(disable_tqdm=True, criterion="magnitude")
    SpectralPruner(model, args, eval_dataset=rows, compute_metrics=metrics).evaluate()
    pruner = SpectralPruner(model, args, eval_dataset=list(rows)[:200], compute_metrics=metrics)
    pruner.evaluate()
    pruner.evaluate(rows)
    assert seen == [300, 200, 300]


@pytest.mark.parametrize("as_dataset", [False, True])
def test_raw_text_is_measured_on_up_to_a_thousand_sequences(as_dataset, tokenizer):
    args = SpectralPruningArguments(disable_tqdm=True, criterion="magnitude")
    for blocks, measured in ((300, 300), (1005, 1000)):
        texts = [" ".join(f"w{40 + index % 50}" for index in range(8 * blocks))]
        source = Dataset.from_dict({"text": texts}) if as_dataset else texts
        model = tiny_model(max_position_embeddings=8)
        data = SpectralPruner(model, args, eval_dataset=source, processing_class=tokenizer).eval_data
        assert data.num_sequences == measured
        assert data.batches[0]["input_ids"][0].tolist() == list(range(40, 48))


def test_a_model_pruned_in_inference_mode_can_be_trained(batches):
    model = tiny_model()
    with torch.inference_mode():
        SpectralPruner(model, SpectralPruningArguments(target_reduction=0.2, disable_tqdm=True), batches).prune()
    model(**batches[0], labels=batches[0]["input_ids"]).loss.backward()
    assert all(parameter.grad is not None for parameter in model.model.layers.parameters())


@pytest.mark.parametrize("recovery", ["none", "full"])
def test_parts_that_were_in_evaluation_mode_stay_in_it(recovery, batches, tmp_path):
    model = tiny_model().train()
    model.model.layers[1].eval()
    training = {"max_steps": 1, "use_cpu": True, "report_to": "none", "output_dir": str(tmp_path)}
    args = SpectralPruningArguments(target_reduction=0.2, recovery=recovery, training_args=training, disable_tqdm=True)
    rows = Dataset.from_dict({"input_ids": [[5, 6, 7]] * 4})
    SpectralPruner(model, args, batches, batches, train_dataset=rows).prune()
    assert model.training and not model.model.layers[1].mlp.training and model.model.layers[0].mlp.training
