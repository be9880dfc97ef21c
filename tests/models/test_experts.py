"""Mixtures of experts: neurons are cut inside every expert, each for itself, and the stock class holds what is left."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
import transformers
from conftest import MOE, logits, random_batch, refused, tiny_model
from crias import random_plan
from products import but, only, pairwise
from safetensors.torch import save_file
from transformers import Trainer, TrainingArguments

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.arguments import ModelArguments
from hf_spectral_prune.calibration import collect_moments
from hf_spectral_prune.criteria import known_criteria
from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.models.families import family_of, module_of, unit_groups
from hf_spectral_prune.models.families.experts import SingleExperts, join_experts
from hf_spectral_prune.models.loading import load_model
from hf_spectral_prune.surgery import apply_plan, masked, settle_class

BATCHES = [random_batch(4, 32, seed, padding="right") for seed in range(2)]
TASKS = ["Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"]
HEADS = [(name, task) for name in MOE for task in TASKS if hasattr(transformers, MOE[name][0] + task)]


def kept(plan):
    return {key: plan.kept_index(key) for key in plan.kept}


def load(folder):
    return load_model(ModelArguments(model_name_or_path=str(folder)))


def is_split(model) -> bool:
    return any(isinstance(module, SingleExperts) for module in model.modules())


def pruner(model, batches=BATCHES, **fields) -> SpectralPruner:
    options = {"target_reduction": 0.3, "round_to": 4, "min_ffn_units": 4, "disable_tqdm": True}
    return SpectralPruner(model, SpectralPruningArguments(**options | fields), batches)


@pytest.mark.parametrize("name", MOE)
def test_splitting_experts_changes_neither_outputs_nor_names_and_is_undone(name):
    model = tiny_model(name)
    expected, state = logits(model, random_batch()), {key: value.clone() for key, value in model.state_dict().items()}
    places = {key: value.data_ptr() for key, value in model.named_parameters()}
    unit_groups(model)
    assert is_split(model)
    assert {key: value.data_ptr() for key, value in model.state_dict().items()} == places, "no copy of a weight"
    assert (logits(model, random_batch()) - expected).abs().max() <= 1e-5
    assert {key: value.shape for key, value in model.state_dict().items()} == {key: value.shape for key, value in state.items()}
    other = tiny_model(name)
    torch.nn.init.zeros_(other.lm_head.weight)
    unit_groups(other)
    other.load_state_dict(model.state_dict())
    join_experts(other, family_of(other.config))
    assert not is_split(other)
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())
    assert torch.equal(logits(other, random_batch()), expected)


@pytest.mark.proves("masked", "parameters", "heads")
@pytest.mark.parametrize(("name", "task"), but({"olmoe", "qwen2_moe"}, HEADS))
def test_removed_model_equals_masked_model_in_the_stock_class(name, task, tmp_path):
    model = tiny_model(name, task=task)
    plan = random_plan(model)
    cut = settle_class(apply_plan(copy.deepcopy(model), plan))
    assert type(cut) is type(model) and not is_split(cut)
    assert num_parameters(cut) == plan.parameters_after < plan.parameters_before
    for batch in (random_batch(), random_batch(padding="right"), random_batch(padding="left")):
        with masked(model, kept(plan)):
            expected = logits(model, batch)
        real = batch["attention_mask"].bool() if expected.ndim == 3 else slice(None)
        assert (logits(cut, batch)[real] - expected[real]).abs().max() <= 1e-5
        assert (expected - logits(model, batch))[real].abs().max() > 1e-2, "the mask must change something"
    cut.save_pretrained(tmp_path)
    assert torch.equal(logits(type(cut).from_pretrained(tmp_path), random_batch()), logits(cut, random_batch()))


def test_published_weights_of_gpt_oss_are_unpacked_cut_and_saved_plain(tmp_path):
    model = tiny_model("gpt_oss", intermediate_size=32)
    model.save_pretrained(tmp_path / "packed")
    weights, generator = dict(model.state_dict()), torch.Generator().manual_seed(0)
    for name in [name for name in weights if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, _, outputs = weights.pop(name).shape  # 32 inputs in a block, two in a byte
        weights[f"{name}_blocks"] = torch.randint(0, 256, (experts, outputs, 1, 16), dtype=torch.uint8, generator=generator)
        weights[f"{name}_scales"] = torch.full((experts, outputs, 1), 125, dtype=torch.uint8)
    save_file(weights, tmp_path / "packed" / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (tmp_path / "packed" / "config.json").write_text(json.dumps(config))
    first = pruner(load(tmp_path / "packed"), output_dir=str(tmp_path / "out"), units=["ffn"])
    output = first.prune()
    first.save_model()  # reloads in a fresh process
    assert output.model.config.intermediate_size < 32 and getattr(output.model.config, "quantization_config", None) is None
    assert torch.equal(logits(load(tmp_path / "out"), random_batch()), logits(output.model, random_batch()))


@pytest.mark.proves("generate")
@pytest.mark.parametrize(("name", "cache"), pairwise(list(MOE), [None, "static"]))
def test_generation_with_a_cache_equals_greedy_choice_without(name, cache):
    model = tiny_model(name)
    cut = settle_class(apply_plan(model, random_plan(model)))
    cut.generation_config.eos_token_id = None
    options = {} if cache is None else {"cache_implementation": cache}
    generated = cut.generate(**random_batch(1, 6), max_new_tokens=8, do_sample=False, **options)
    ids = random_batch(1, 6)["input_ids"]
    for _ in range(8):
        ids = torch.cat([ids, logits(cut, {"input_ids": ids})[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(generated, ids)


@pytest.mark.proves("reload", "again")
@pytest.mark.parametrize("name", only(["mixtral"], MOE))
def test_run_is_saved_reloaded_and_pruned_again(name, tmp_path):
    dense = num_parameters(tiny_model(name))
    fields = {"allocation": "proportional", "num_rounds": 2, "save_strategy": "steps"}  # so that the experts lose some, too
    first = pruner(tiny_model(name), output_dir=str(tmp_path / "out"), **fields)
    output = first.prune()
    first.save_model()  # reloads in a fresh process
    assert num_parameters(output.model) == output.plan.parameters_after < dense
    assert not is_split(output.model) and output.report.metrics_after == {}
    widths = {len(units) for key, units in output.plan.kept.items() if ".experts." in key}
    assert widths == {getattr(output.model.config, family_of(output.model.config).kind("ffn").size_field)}
    assert len({units for key, units in output.plan.kept.items() if ".experts." in key}) > 1, "each expert for itself"
    again = pruner(load(tmp_path / "out"), target_reduction=0.4).prune()
    assert num_parameters(again.model) == again.plan.parameters_after < output.plan.parameters_after


def test_run_goes_on_from_a_checkpoint(tmp_path):
    options = {"num_rounds": 2, "save_strategy": "steps"}
    whole = pruner(tiny_model("mixtral"), output_dir=str(tmp_path / "whole"), **options).prune()
    resumed = pruner(tiny_model("mixtral"), output_dir=str(tmp_path / "whole"), **options)
    output = resumed.prune(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    assert output.plan.to_json() == whole.plan.to_json()
    assert torch.equal(logits(output.model, random_batch()), logits(whole.model, random_batch()))


def test_second_prune_composes_into_one_plan():
    model = tiny_model("qwen2_moe")
    original = copy.deepcopy(model)
    first = random_plan(model)
    apply_plan(model, first)
    second = random_plan(model, 1, {"ffn": 8, "shared_ffn": 4, "heads": 1})
    twice = settle_class(apply_plan(settle_class(model), second))
    once = settle_class(apply_plan(original, first.then(second)))
    assert torch.equal(logits(twice, random_batch()), logits(once, random_batch()))


@pytest.mark.proves("bfloat16")
@pytest.mark.parametrize("name", only(["mixtral", "qwen2_moe"], MOE))
def test_cut_model_works_in_bfloat16(name):
    model = tiny_model(name).to(torch.bfloat16)
    plan = random_plan(model)
    with masked(model, kept(plan)):
        expected = logits(model, random_batch())
    cut = settle_class(apply_plan(model, plan))
    assert cut.dtype == torch.bfloat16
    # As for other families; a token whose experts are level may go to another one, so the mean is taken.
    assert (logits(cut, random_batch()) - expected).abs().mean() <= 0.02 * expected.abs().max()


@pytest.mark.parametrize("signals", ["activations", "loss"])
def test_moments_of_an_expert_are_of_the_real_tokens_that_reach_it(signals):
    """Padding counts for nothing, and what an expert's last layer reads is weighed as the router weighs it."""
    model, batch = tiny_model("mixtral"), random_batch(3, 12, padding="left")
    groups = unit_groups(model, ["ffn"])
    moments = collect_moments(model, groups, [batch], signals=signals, progress=False)
    layer, mask = model.model.layers[0], batch["attention_mask"].flatten().bool()
    seen = []
    handle = layer.mlp.experts.register_forward_pre_hook(lambda _module, args: seen.append(args))
    logits(model, batch)
    handle.remove()
    states, experts, weights = (value[mask] for value in seen[0])
    for number in range(4):
        group = groups[number]
        tokens, place = torch.where(experts == number)
        assert group.key == f"layers.0.mlp.experts.{number}.ffn"
        assert moments[group.key].after.count == len(tokens) > 0
        if signals == "loss":
            continue
        gate, up = (module_of(model, 0, f"mlp.experts.{number}.{name}")(states[tokens]) for name in ("gate_proj", "up_proj"))
        hidden = torch.nn.functional.silu(gate) * up * weights[tokens, place, None]
        torch.testing.assert_close(moments[group.key].after.sum, hidden.double().sum(0), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(moments[group.key].before.sum, gate.double().sum(0), rtol=1e-5, atol=1e-5)


def without_last_expert():
    """A model whose router in the first layer sends nothing to the last of four experts."""
    model = tiny_model("mixtral")
    model.model.layers[0].mlp.gate.register_forward_hook(lambda _module, _args, found: (*found[:2], found[2] % 3))
    return model


def test_an_expert_that_no_token_reaches_is_told_and_has_the_moments_of_noise(caplog):
    model = without_last_expert()
    groups = unit_groups(model, ["ffn"])
    moments = collect_moments(model, groups, BATCHES[:1], progress=False)
    assert torch.equal(moments["layers.0.mlp.experts.3.ffn"].after.raw(), torch.eye(24, dtype=torch.float64))
    assert moments["layers.0.mlp.experts.2.ffn"].after.count > 1
    assert "`layers.0.mlp.experts.3`" in caplog.text


@pytest.mark.parametrize("criterion", sorted(known_criteria()))
def test_every_criterion_scores_experts_also_those_that_no_token_reaches(criterion):
    model = without_last_expert()
    options = {"num_steps": 2, "max_steps": 3, "num_sequences": 1} if criterion == "integrated_gradients" else {}
    scores = pruner(model, BATCHES[:1], criterion=criterion, criterion_args=options).score()
    assert {key for key in scores if ".experts." in key} == {
        f"layers.{layer}.mlp.experts.{number}.ffn" for layer in range(3) for number in range(4)
    }


@pytest.mark.parametrize("recovery", ["full", "lora", "blocks"])
def test_recovery_trains_the_model_with_its_experts_joined(recovery, tmp_path):
    training = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "report_to": "none", "use_cpu": True}
    rows = [{"input_ids": ids, "labels": ids} for batch in BATCHES for ids in batch["input_ids"]]
    options = {"training_args": {**training, "output_dir": str(tmp_path)}, "recovery": recovery, "disable_tqdm": True}
    args = SpectralPruningArguments(round_to=4, min_ffn_units=4, **options)
    output = SpectralPruner(
        tiny_model("olmoe"), args, BATCHES, train_dataset=rows, teacher=tiny_model("olmoe") if recovery == "blocks" else None
    ).prune()
    assert not is_split(output.model) and output.report.recovery is not None


def test_what_experts_do_not_allow_is_refused_with_the_way_that_does(tmp_path):
    model = tiny_model("mixtral")
    refused(lambda: pruner(model, layout="per_layer"), "no per-layer class", "uniform")
    for compensation in ("bias", "sequential"):
        refused(lambda: pruner(model, compensation=compensation), '`compensation="least_squares"`')  # noqa: B023
    plan = random_plan(model)
    key = next(key for key in plan.kept if ".experts." in key)
    uneven = replace(plan, kept=plan.kept | {key: plan.kept[key][:8]})
    refused(lambda: apply_plan(model, uneven), "different numbers of units")
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", max_steps=1)
    rows = [{"input_ids": ids, "labels": ids} for ids in BATCHES[0]["input_ids"]]
    trainer = Trainer(tiny_model("mixtral"), args, train_dataset=rows)
    refused(
        lambda: SpectralPruner.attach(trainer, SpectralPruningArguments(), calibration_dataset=BATCHES),
        "does not know the experts of `mixtral`",
        "`SpectralPruner`",
    )
