"""Removal does exactly what masking does, for every family, layout, unit kind and GQA ratio."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import ALIKE, CORE, FAMILIES, FFN_ONLY, FIXED_FFN, FIXED_HEADS, has_task, logits, random_batch, tiny_model
from products import but, each_once, only, pairwise

from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.models.families import kinds_of, unit_groups
from hf_spectral_prune.planning import choose_units
from hf_spectral_prune.surgery import apply_plan, as_mistral, masked, settle_class
from hf_spectral_prune.surgery.plan import PruningPlan

KINDS = [("ffn",), ("heads",), ("ffn", "heads")]
LAYOUTS = ["uniform", "per_layer"]


def random_plan(model, kinds=("ffn", "heads"), *, per_layer: bool, seed: int = 0, sizes: dict | None = None) -> PruningPlan:
    """A plan with random kept units; sizes differ by layer if `per_layer`."""
    generator = torch.Generator().manual_seed(seed)
    groups = unit_groups(model, kinds)
    scores = {group.key: torch.rand(group.size, generator=generator) for group in groups}
    if sizes is None:
        cut = {"ffn": (16, 8, 24), "heads": (2, 1, 2)} if per_layer else {"ffn": (16,) * 3, "heads": (2,) * 3}
        sizes = {group.key: min(group.size, cut[group.kind][group.layer]) for group in groups}
    return choose_units(groups, scores, sizes, num_parameters(model), model_type=model.config.model_type)


def kept(plan: PruningPlan) -> dict[str, torch.Tensor]:
    return {key: plan.kept_index(key) for key in plan.kept}


@pytest.mark.proves("masked")
@pytest.mark.parametrize(("family", "layout", "kinds"), pairwise(list(FAMILIES), LAYOUTS, KINDS))
def test_removed_model_equals_masked_model(family, layout, kinds):
    model = tiny_model(family)
    plan = random_plan(model, kinds, per_layer=layout == "per_layer")
    for batch in (random_batch(), random_batch(padding="right"), random_batch(padding="left")):
        with masked(model, kept(plan)):
            expected = logits(model, batch)
        cut = settle_class(apply_plan(copy.deepcopy(model), plan))
        real = batch["attention_mask"].bool()
        assert (logits(cut, batch)[real] - expected[real]).abs().max() <= 1e-5
        assert (expected - logits(model, batch)).abs().max() > 1e-2, "the mask must change something"


@pytest.mark.proves("masked", "parameters", "heads")
@pytest.mark.parametrize(
    ("family", "task", "layout"), pairwise(list(FFN_ONLY), ["Model", "ForCausalLM", "ForSequenceClassification"], LAYOUTS)
)
def test_ffn_alone_is_cut_settled_and_saved(family, task, layout, tmp_path):
    model = tiny_model(family, task=task)
    plan = random_plan(model, ("ffn",), per_layer=layout == "per_layer")
    cut = settle_class(apply_plan(copy.deepcopy(model), plan))
    assert isinstance(cut, type(model)) and type(cut).__name__.startswith("Cria") == (
        layout == "per_layer" or family in FIXED_FFN
    )
    assert num_parameters(cut) == plan.parameters_after < plan.parameters_before
    for batch in (random_batch(), random_batch(padding="right"), random_batch(padding="left")):
        with masked(model, kept(plan)):
            expected = logits(model, batch)
        real = batch["attention_mask"].bool() if expected.ndim == 3 else slice(None)
        assert (logits(cut, batch)[real] - expected[real]).abs().max() <= 1e-5
        assert (expected - logits(model, batch)).abs().max() > 1e-2, "the mask must change something"
    cut.save_pretrained(tmp_path)
    reloaded = type(cut).from_pretrained(tmp_path)
    assert torch.equal(logits(copy.deepcopy(reloaded), random_batch()), logits(cut, random_batch()))


@pytest.mark.parametrize("heads", [(8, 8), (8, 4), (8, 2), (6, 3), (9, 3)], ids=str)
@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
def test_removal_equals_masking_for_every_gqa_ratio(heads, layout):
    model = tiny_model("qwen3", heads=heads)
    plan = random_plan(model, per_layer=layout == "per_layer")
    with masked(model, kept(plan)):
        expected = logits(model, random_batch())
    cut = settle_class(apply_plan(model, plan))
    assert (logits(cut, random_batch()) - expected).abs().max() <= 1e-5


TASKS = ("Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
PLAIN = [family for family in [*FAMILIES, *FFN_ONLY] if "-" not in family]
HEADS = [(family, task) for family in PLAIN for task in TASKS if has_task(family, task)]


@pytest.mark.proves("heads")
@pytest.mark.parametrize(("family", "task"), each_once(HEADS))
def test_every_task_head_is_cut_and_settled(family, task, tmp_path):
    model = tiny_model(family, task=task)
    stock = type(model).__name__
    plan = random_plan(model, kinds_of(model), per_layer=True)
    with masked(model, kept(plan)):
        expected = logits(model, random_batch())
    cut = settle_class(apply_plan(model, plan))
    assert type(cut).__name__.replace("Text", "") == f"Cria{stock}".replace("Text", "")
    assert (logits(cut, random_batch()) - expected).abs().max() <= 1e-5
    cut.save_pretrained(tmp_path)
    reloaded = type(cut).from_pretrained(tmp_path)
    assert torch.equal(logits(reloaded, random_batch()), logits(cut, random_batch()))


@pytest.mark.proves("parameters")
@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
@pytest.mark.parametrize("family", but(ALIKE, FAMILIES))
def test_predicted_parameter_count_is_the_real_one(family, layout):
    model = tiny_model(family)
    plan = random_plan(model, per_layer=layout == "per_layer")
    cut = settle_class(apply_plan(model, plan))
    assert num_parameters(cut) == plan.parameters_after < plan.parameters_before


@pytest.mark.proves("bfloat16")
@pytest.mark.parametrize("family", but(ALIKE | {"olmo3", "falcon"}, PLAIN))
def test_cut_model_works_in_bfloat16(family):
    model = tiny_model(family).to(torch.bfloat16)
    plan = random_plan(model, kinds_of(model), per_layer=True)
    with masked(model, kept(plan)):
        expected = logits(model, random_batch())
    cut = settle_class(apply_plan(model, plan))
    assert cut.dtype == torch.bfloat16
    # Sums of 8-bit mantissas in another order: a few units in the last place of logits of size 10.
    assert (logits(cut, random_batch()) - expected).abs().max() <= 0.02 * expected.abs().max()


# A stock Falcon with ALiBi cannot use a static cache.
GENERATING = ["mistral-window", *(name for name in PLAIN if name != "mistral")]


@pytest.mark.proves("generate")
@pytest.mark.parametrize(("family", "layout", "cache"), pairwise(GENERATING, LAYOUTS, [None, "static"]))
def test_generation_with_a_cache_equals_greedy_choice_without(family, layout, cache):
    model = tiny_model(family)
    cut = settle_class(apply_plan(model, random_plan(model, kinds_of(model), per_layer=layout == "per_layer")))
    prompt = random_batch(1, 6)
    options = {} if cache is None else {"cache_implementation": cache}
    cut.generation_config.eos_token_id = None
    generated = cut.generate(**prompt, max_new_tokens=8, do_sample=False, **options)
    ids = prompt["input_ids"]
    for _ in range(8):
        ids = torch.cat([ids, logits(cut, {"input_ids": ids})[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(generated, ids)


TWICE = ["llama", "gemma2", "phi3", "cohere", "glm4", "phi", "stablelm", "opt", "gpt_neox", "falcon", "bloom", "gpt2-open"]


@pytest.mark.proves("again")
@pytest.mark.parametrize("family", only(TWICE, [*PLAIN, "gpt2-open"]))
def test_second_prune_composes_into_one_plan(family):
    model = tiny_model(family)
    kinds = kinds_of(model)
    original = copy.deepcopy(model)
    first = random_plan(model, kinds, per_layer=True)
    apply_plan(model, first)
    sizes = {group.key: max(1, group.size // 2) for group in unit_groups(model)}
    second = random_plan(model, kinds, per_layer=True, seed=1, sizes=sizes)
    twice = settle_class(apply_plan(settle_class(model), second))
    once = settle_class(apply_plan(original, first.then(second)))
    assert torch.equal(logits(twice, random_batch()), logits(once, random_batch()))
    assert first.then(second).parameters_after == num_parameters(once)


def test_uniform_result_of_a_per_layer_model_is_a_stock_class_again():
    model = tiny_model("llama")
    settle_class(apply_plan(model, random_plan(model, per_layer=True)))
    assert type(model).__name__ == "CriaLlamaForCausalLM"
    sizes = {group.key: 8 if group.kind == "ffn" else 1 for group in unit_groups(model)}
    before = random_plan(model, per_layer=True, sizes=sizes)
    with masked(model, kept(before)):
        expected = logits(model, random_batch())
    settle_class(apply_plan(model, before))
    assert type(model) is type(tiny_model("llama"))
    assert type(model.config) is type(tiny_model("llama").config)
    assert (logits(model, random_batch()) - expected).abs().max() <= 1e-5


def test_llama_as_mistral_has_equal_logits_with_any_head_count():
    model = tiny_model("llama", heads=(16, 8))
    sizes = {group.key: 16 if group.kind == "ffn" else 5 for group in unit_groups(model)}
    cut = apply_plan(model, random_plan(model, per_layer=False, sizes=sizes))
    expected = logits(cut, random_batch())
    converted = as_mistral(cut)
    assert type(converted).__name__ == "MistralForCausalLM"
    assert converted.config.num_attention_heads == 10  # does not divide 32
    assert torch.equal(logits(converted, random_batch()), expected)


def test_as_mistral_refuses_biases():
    with pytest.raises(ValueError, match="bias-free"):
        as_mistral(tiny_model("llama-biases"))


def test_plan_applied_twice_is_an_error_that_says_so():
    model = tiny_model("llama")
    plan = random_plan(model, per_layer=True)
    apply_plan(model, plan)
    with pytest.raises(ValueError, match="already applied"):
        apply_plan(model, plan)


def test_plan_of_another_model_is_an_error_that_says_so():
    plan = random_plan(tiny_model("llama"), per_layer=True)
    with pytest.raises(ValueError, match="another model"):
        apply_plan(tiny_model("llama", intermediate_size=40), plan)
    with pytest.raises(ValueError, match="another model"):
        apply_plan(tiny_model("qwen3"), plan)


def test_plan_for_other_weights_of_the_same_shape_is_an_error():
    from dataclasses import replace

    from hf_spectral_prune.surgery import fingerprint

    model = tiny_model("llama")
    plan = replace(random_plan(model, per_layer=True), fingerprint=fingerprint(model))
    other = tiny_model("llama")
    with torch.no_grad():
        other.model.layers[1].mlp.down_proj.weight.mul_(1.5)
    with pytest.raises(ValueError, match="weights differ"):
        apply_plan(copy.deepcopy(other), plan)
    apply_plan(other, plan, check_weights=False)
    apply_plan(model, plan)


def test_cut_keeps_what_training_needs():
    model = tiny_model("llama")
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    cut = settle_class(apply_plan(model, random_plan(model, per_layer=True)))
    assert not cut.model.layers[0].mlp.up_proj.weight.requires_grad
    cut.train()
    loss = cut(**random_batch(), labels=random_batch()["input_ids"]).loss
    loss.backward()
    gradient = cut.model.layers[1].mlp.down_proj.weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("family", only(CORE, [name for name in FAMILIES if name not in FIXED_HEADS]))
def test_head_size_stays_where_layers_become_equal_again(family, tmp_path):
    """From stock to Cria to stock: 8 heads of size 4 over a hidden size of 32 become 4 heads, whose size is still 4."""
    model = tiny_model(family)
    heads = {f"layers.{layer}.heads": count for layer, count in enumerate((4, 2, 4))}
    settle_class(apply_plan(model, random_plan(model, ("heads",), per_layer=True, sizes=heads)))
    assert type(model).__name__.startswith("Cria")
    settle_class(apply_plan(model, random_plan(model, ("heads",), per_layer=True, sizes=dict.fromkeys(heads, 2))))
    assert not type(model).__name__.startswith("Cria")
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.model.layers[0].self_attn.head_dim == 4
    assert torch.equal(logits(copy.deepcopy(again), random_batch()), logits(model, random_batch()))


@pytest.mark.parametrize(
    ("family", "fields"),
    [("cohere", {"use_qk_norm": True}), ("phi", {"qk_layernorm": True}), ("stablelm", {"qk_layernorm": True})],
)
def test_heads_that_a_norm_ties_together_are_left_alone(family, fields):
    model = tiny_model(family, **fields)
    with pytest.raises(ValueError, match=r"ties the heads of a layer together.*`units`"):
        unit_groups(model, ["heads"])
    plan = random_plan(model, ("ffn",), per_layer=True)
    with masked(model, kept(plan)):
        expected = logits(model, random_batch())
    cut = settle_class(apply_plan(model, plan))
    assert num_parameters(cut) == plan.parameters_after
    assert (logits(cut, random_batch()) - expected).abs().max() <= 1e-5
