"""Removal does exactly what masking does in encoders, for every family, task head, layout and unit kind."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from conftest import ENCODER_TASKS, ENCODERS, VOCABULARY, encoder_batch, logits, tiny_encoder
from products import each_once, pairwise
from test_cut import KINDS, LAYOUTS, kept, random_plan

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.calibration import collect_moments
from hf_spectral_prune.data.texts import CalibrationData
from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.models.families import unit_groups
from hf_spectral_prune.planning.damage import loss_curves
from hf_spectral_prune.saving.reload import probe_inputs
from hf_spectral_prune.surgery import apply_plan, masked, settle_class
from hf_spectral_prune.surgery.plan import PruningPlan

PLAIN = [family for family in ENCODERS if family != "modernbert-biases"]


def plan_for(model, kinds=("ffn", "heads"), *, per_layer: bool, seed: int = 0) -> PruningPlan:
    cut = {"ffn": (16, 8, 24), "heads": (5, 8, 1)} if per_layer else {"ffn": (16,) * 3, "heads": (5,) * 3}
    sizes = {group.key: cut[group.kind][group.layer] for group in unit_groups(model, kinds)}
    return random_plan(model, kinds, per_layer=per_layer, seed=seed, sizes=sizes)


def masked_output(model, plan, batch) -> torch.Tensor:
    with masked(model, kept(plan)):
        return logits(model, batch)


@pytest.mark.proves("masked", "parameters")
@pytest.mark.parametrize(("family", "attention", "layout", "kinds"), pairwise(list(ENCODERS), ["sdpa", "eager"], LAYOUTS, KINDS))
def test_removed_model_equals_masked_model(family, attention, layout, kinds):
    model = tiny_encoder(family, task="ForTokenClassification", attn_implementation=attention)
    plan = plan_for(model, kinds, per_layer=layout == "per_layer")
    cut = settle_class(apply_plan(copy.deepcopy(model), plan))
    assert type(cut).__name__.startswith("Cria") == (layout == "per_layer" or "heads" in kinds)
    assert num_parameters(cut) == plan.parameters_after < plan.parameters_before
    for padding in (None, "right", "left"):
        batch = encoder_batch(model, padding=padding)
        expected = masked_output(model, plan, batch)
        real = batch["attention_mask"].bool()
        assert (logits(cut, batch)[real] - expected[real]).abs().max() <= 1e-5
        assert (expected - logits(model, batch))[real].abs().max() > 1e-2, "the mask must change something"


@pytest.mark.proves("heads")
@pytest.mark.parametrize(("family", "task"), each_once(ENCODER_TASKS))
def test_every_task_head_is_cut_settled_and_saved(family, task, tmp_path):
    model = tiny_encoder(family, task=task)
    stock = type(model)
    batch = encoder_batch(model)
    plan = plan_for(model, per_layer=True)
    expected = masked_output(model, plan, batch)
    cut = settle_class(apply_plan(model, plan))
    assert type(cut).__name__ == f"Cria{stock.__name__}"
    assert (logits(cut, batch) - expected).abs().max() <= 1e-5
    cut.save_pretrained(tmp_path)
    (auto,) = [name for name, where in cut.config.auto_map.items() if where.endswith(f".Cria{stock.__name__}")]
    reloaded = getattr(transformers, auto).from_pretrained(tmp_path)
    assert type(reloaded) is type(cut)
    assert reloaded.config.to_dict() | {"_name_or_path": ""} == cut.config.to_dict()
    assert all(torch.equal(one, two) for one, two in zip(cut.state_dict().values(), reloaded.state_dict().values(), strict=True))
    # Copied, because a mapped file is not aligned as fresh memory is, and a matrix product may then take another kernel.
    outputs = (cut(**batch).to_tuple(), copy.deepcopy(reloaded)(**batch).to_tuple())
    assert all(torch.equal(one, two) for one, two in zip(*outputs, strict=True) if isinstance(one, torch.Tensor))
    assert logits(cut, probe_inputs(cut)).isfinite().all()


@pytest.mark.parametrize("family", PLAIN)
def test_narrower_ffn_in_all_layers_is_the_stock_class_with_one_field_changed(family, tmp_path):
    model = tiny_encoder(family)
    before = model.config.to_dict()
    cut = settle_class(apply_plan(model, plan_for(model, ("ffn",), per_layer=False)))
    assert type(cut) is type(tiny_encoder(family))
    changed = {name: value for name, value in cut.config.to_dict().items() if before.get(name) != value}
    assert changed == {"hidden_dim" if family == "distilbert" else "intermediate_size": 16}
    cut.save_pretrained(tmp_path)
    reloaded = type(cut).from_pretrained(tmp_path)
    assert torch.equal(logits(reloaded, encoder_batch(cut)), logits(cut, encoder_batch(cut)))


@pytest.mark.parametrize("family", PLAIN)
def test_fewer_heads_in_all_layers_keep_the_head_size(family):
    model = tiny_encoder(family)
    scaling = [module.scaling for module in model.modules() if hasattr(module, "scaling")]
    cut = settle_class(apply_plan(model, plan_for(model, ("heads",), per_layer=False)))
    assert not cut.config.is_heterogeneous
    assert (cut.config.num_attention_heads, cut.config.head_dim, cut.config.hidden_size) == (5, 4, 32)
    assert [module.scaling for module in cut.modules() if hasattr(module, "scaling")] == scaling
    rebuilt = type(cut)(cut.config)
    assert [module.scaling for module in rebuilt.modules() if hasattr(module, "scaling")] == scaling
    assert {name: value.shape for name, value in rebuilt.state_dict().items()} == {
        name: value.shape for name, value in cut.state_dict().items()
    }


@pytest.mark.proves("bfloat16")
@pytest.mark.parametrize("family", PLAIN)
def test_cut_encoder_works_in_bfloat16(family):
    model = tiny_encoder(family).to(torch.bfloat16)
    plan = plan_for(model, per_layer=True)
    expected = masked_output(model, plan, encoder_batch(model))
    cut = settle_class(apply_plan(model, plan))
    assert cut.dtype == torch.bfloat16
    assert (logits(cut, encoder_batch(cut)) - expected).abs().max() <= 0.02 * expected.abs().max()


@pytest.mark.proves("again")
@pytest.mark.parametrize("family", PLAIN)
def test_second_prune_composes_into_one_plan(family):
    model = tiny_encoder(family)
    original = copy.deepcopy(model)
    first = plan_for(model, per_layer=True)
    settle_class(apply_plan(model, first))
    sizes = {group.key: max(1, group.size // 2) for group in unit_groups(model)}
    second = random_plan(model, per_layer=True, seed=1, sizes=sizes)
    twice = settle_class(apply_plan(model, second))
    once = settle_class(apply_plan(original, first.then(second)))
    assert torch.equal(logits(twice, encoder_batch(twice)), logits(once, encoder_batch(once)))
    assert first.then(second).parameters_after == num_parameters(once)


@pytest.mark.parametrize("family", PLAIN)
def test_layers_made_equal_again_are_a_stock_class_again(family):
    model = tiny_encoder(family)
    stock, config_class = type(model), type(model.config)
    settle_class(apply_plan(model, plan_for(model, ("ffn",), per_layer=True)))
    assert type(model).__name__ == f"Cria{stock.__name__}"
    sizes = {group.key: 8 for group in unit_groups(model, ["ffn"])}
    settle_class(apply_plan(model, random_plan(model, ("ffn",), per_layer=False, sizes=sizes)))
    assert (type(model), type(model.config)) == (stock, config_class)
    assert "consumer_bias" not in model.config.to_dict() and "head_dim" not in model.config.to_dict()
    rebuilt = stock(model.config)
    rebuilt.load_state_dict(model.state_dict())
    assert torch.equal(logits(rebuilt, encoder_batch(model)), logits(model, encoder_batch(model)))


def test_plan_of_another_encoder_is_an_error_that_says_so():
    plan = plan_for(tiny_encoder("distilbert"), per_layer=True)
    with pytest.raises(ValueError, match="made for another model: a `distilbert`"):
        apply_plan(tiny_encoder("bert"), plan)


def test_attention_maps_and_attention_switch_see_the_narrowed_heads():
    model = tiny_encoder("bert", task="Model")
    cut = settle_class(apply_plan(model, plan_for(model, per_layer=True)))
    expected = logits(cut, encoder_batch(cut))
    cut.set_attn_implementation("eager")
    output = cut(**encoder_batch(cut), output_attentions=True)
    assert [maps.shape[1] for maps in output.attentions] == [5, 8, 1]
    assert (output[0] - expected).abs().max() <= 1e-5


def test_decoder_with_cross_attention_keeps_it_whole():
    model = tiny_encoder("bert", task="LMHeadModel", is_decoder=True, add_cross_attention=True)
    batch = encoder_batch(model) | {"encoder_hidden_states": torch.randn(2, 5, 32)}
    plan = plan_for(model, per_layer=True)
    expected = masked_output(model, plan, batch)
    cut = settle_class(apply_plan(model, plan))
    assert (logits(cut, batch) - expected).abs().max() <= 1e-5
    assert {k: v.shape for k, v in type(cut)(cut.config).state_dict().items()} == {
        k: v.shape for k, v in cut.state_dict().items()
    }
    prompt = {"input_ids": batch["input_ids"][:1, :4]}
    cached = cut.generate(**prompt, max_new_tokens=4, do_sample=False, use_cache=True)
    assert torch.equal(cached, cut.generate(**prompt, max_new_tokens=4, do_sample=False, use_cache=False))


def test_cut_encoder_trains():
    model = tiny_encoder("modernbert")
    cut = settle_class(apply_plan(model, plan_for(model, per_layer=True))).train()
    cut.gradient_checkpointing_enable()
    cut(**encoder_batch(cut), labels=torch.tensor([0, 1])).loss.backward()
    for layer in cut.model.layers:
        assert layer.attn.Wqkv.weight.grad.abs().sum() > 0
        assert layer.mlp.Wi.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("family", PLAIN)
def test_signals_are_the_states_that_the_table_of_methods_names(family):
    """The input side of a neuron goes through the activation to its output side; a head's is its value states."""
    model = tiny_encoder(family, task="Model")
    batch = encoder_batch(model, rows=1)
    moments = collect_moments(model, unit_groups(model), [batch], progress=False)
    seen = {}
    layer = {"distilbert": "transformer.layer.0", "modernbert": "layers.0"}.get(family, "encoder.layer.0")
    wide = {"distilbert": "ffn.lin1", "modernbert": "mlp.Wi"}.get(family, "intermediate.dense")
    value = {"distilbert": "attention.v_lin", "modernbert": "attn.Wqkv"}.get(family, "attention.self.value")
    for name in (wide, value):
        model.get_submodule(f"{layer}.{name}").register_forward_hook(
            lambda _module, _args, output, name=name: seen.__setitem__(name, output[0])
        )
    logits(model, batch)
    gelu = torch.nn.functional.gelu
    before, gate = seen[wide].chunk(2, -1) if family == "modernbert" else (seen[wide], 1.0)
    torch.testing.assert_close(moments["layers.0.ffn"].before.sum, before.double().sum(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moments["layers.0.ffn"].after.sum, (gelu(before) * gate).double().sum(0), rtol=1e-4, atol=1e-4)
    values = seen[value][:, -32:]
    torch.testing.assert_close(moments["layers.0.heads"].before.sum, values.double().sum(0), rtol=1e-4, atol=1e-4)


# ---- the pruner


def targets(model, batch: dict) -> dict:
    """The batch with random targets for the model's task head."""
    generator = torch.Generator().manual_seed(1)
    rows, length = len(batch["input_ids"]), batch["input_ids"].shape[-1]
    name = type(model).__name__
    per_token = torch.randint(0, 2, (rows, length), generator=generator)
    per_row = torch.randint(0, 2, (rows,), generator=generator)
    if name.endswith("QuestionAnswering"):
        return batch | {"start_positions": per_row, "end_positions": per_row + 1}
    if name.endswith("PreTraining"):
        return batch | {"labels": per_token, "next_sentence_label": per_row}
    whole_row = name.endswith(("SequenceClassification", "MultipleChoice", "NextSentencePrediction"))
    return batch | {"labels": per_row if whole_row else per_token}


def run(model, batches, **fields):
    options = {"target_reduction": 0.3, "target_scope": "prunable", "round_to": 4, "min_ffn_units": 4, "disable_tqdm": True}
    options |= {"compensation": "none"}
    return SpectralPruner(model, SpectralPruningArguments(**options | fields), CalibrationData(tuple(batches), {})).prune()


@pytest.mark.parametrize(("family", "task"), each_once(ENCODER_TASKS))
def test_pruner_prunes_every_task_head(family, task):
    model = tiny_encoder(family, task=task)
    batches = [targets(model, encoder_batch(model, 4, 16, seed)) for seed in (0, 1)]
    # A model without task head has no loss to measure, so its scores must allocate.
    allocation = "scores" if task == "Model" else "loss_curves"
    output = run(model, batches, layout="per_layer", num_rounds=2, allocation=allocation)
    assert type(output.model).__name__ == f"Cria{type(tiny_encoder(family, task=task)).__name__}"
    assert 0.25 < output.metrics["reduction"] * output.metrics["parameters_before"] / prunable(family, task) <= 0.3
    assert logits(output.model, encoder_batch(model)).isfinite().all()


def prunable(family: str, task: str) -> int:
    return sum(group.size * group.parameters_per_unit for group in unit_groups(tiny_encoder(family, task=task)))


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
def test_bias_repair_of_a_bias_free_encoder(layout, tmp_path):
    model = tiny_encoder("modernbert")
    assert model.model.layers[0].mlp.Wo.bias is None
    batch = encoder_batch(model)
    cut = run(model, [targets(model, batch)], layout=layout, units=["ffn"], compensation="bias").model
    assert type(cut).__name__ == ("" if layout == "uniform" else "Cria") + "ModernBertForSequenceClassification"
    assert all(layer.mlp.Wo.bias.abs().sum() > 0 for layer in cut.model.layers if layer.mlp.Wo.in_features < 24)
    cut.save_pretrained(tmp_path)
    assert torch.equal(logits(type(cut).from_pretrained(tmp_path), batch), logits(cut, batch))


@pytest.mark.parametrize("family", PLAIN)
def test_least_squares_repair_comes_nearer_to_the_dense_encoder(family):
    model = tiny_encoder(family, task="Model")
    batches = [encoder_batch(model, 4, 32, seed) for seed in range(4)]
    away = {}
    for compensation in ("none", "least_squares"):
        cut = run(copy.deepcopy(model), batches, layout="uniform", units=["ffn"], compensation=compensation).model
        away[compensation] = float((logits(cut, batches[0]) - logits(model, batches[0])).square().mean())
    assert away["least_squares"] < away["none"]


def test_uniform_result_stays_a_stock_class():
    model = tiny_encoder("bert")
    output = run(model, [encoder_batch(model, 4, 16)], layout="uniform", target_reduction=0.2)
    assert type(output.model).__name__ == "BertForSequenceClassification"
    assert output.metrics["reduction"] > 0


@pytest.mark.parametrize(("family", "task"), each_once(row for row in ENCODER_TASKS if row[1] != "Model"))
def test_loss_signals_work_with_the_targets_of_every_head(family, task):
    if task in ("LMHeadModel", "ForCausalLM"):
        model = tiny_encoder(family, task=task, is_decoder=True)
    else:
        model = tiny_encoder(family, task=task)
    batch = targets(model, encoder_batch(model, 2, 8, padding="right"))
    moments = collect_moments(model, unit_groups(model), [batch], signals="loss", progress=False)
    assert all(sides.after.second_moment.diagonal().sum() > 0 for sides in moments.values())
    assert all(sides.after.count == sides.before.count == batch["attention_mask"].sum() for sides in moments.values())


@pytest.mark.parametrize("task", ["ForSequenceClassification", "ForQuestionAnswering", "ForMaskedLM", "LMHeadModel"])
def test_missing_targets_are_an_error_before_work(task):
    model = tiny_encoder("bert", task=task)
    wanted = "`start_positions`, `end_positions`" if task == "ForQuestionAnswering" else "`labels`"
    with pytest.raises(ValueError, match=f"no {wanted}"):
        collect_moments(model, unit_groups(model), [encoder_batch(model)], signals="loss", progress=False)
    scores = {group.key: torch.arange(group.size).float() for group in unit_groups(model)}
    with pytest.raises(ValueError, match=f"no {wanted}"):
        loss_curves(model, unit_groups(model), scores, [encoder_batch(model)], progress=False)


def test_a_loss_of_a_model_without_head_is_an_error():
    model = tiny_encoder("bert", task="Model")
    with pytest.raises(ValueError, match="no task head"):
        collect_moments(model, unit_groups(model), [encoder_batch(model)], signals="loss", progress=False)


def test_padding_never_enters_moments():
    model = tiny_encoder("bert", task="ForMultipleChoice")
    batch = encoder_batch(model, padding="right")
    changed = batch | {"input_ids": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, VOCABULARY - 1)}
    one, two = (collect_moments(model, unit_groups(model), [item], progress=False) for item in (batch, changed))
    assert one["layers.2.ffn"].after.count == batch["attention_mask"].sum()
    for key in one:
        assert torch.equal(one[key].after.second_moment, two[key].after.second_moment)
