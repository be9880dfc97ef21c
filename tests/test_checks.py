"""Models that a cut or a folder could not hold, and losses that are no numbers, are told before the first cut."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from conftest import ENCODER_TASKS, FAMILIES, refused, tiny_encoder, tiny_model
from products import each_once
from torch import nn
from torch.nn.utils import prune
from transformers import BertModel, BertPreTrainedModel, LlamaForCausalLM

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments, checks
from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.planning.damage import SuffixLoss
from hf_spectral_prune.saving.reload import check_reloads


def make_pruner(model, batches, eval_dataset=None, **fields) -> SpectralPruner:
    defaults = {"disable_tqdm": True, "target_reduction": 0.3, "target_scope": "prunable", "round_to": 4, "min_ffn_units": 4}
    return SpectralPruner(model, SpectralPruningArguments(**defaults | fields), batches, eval_dataset)


@pytest.mark.parametrize("data", ["evaluation", "calibration"])
def test_a_dense_loss_that_is_no_number_ends_the_run_before_a_cut(data, batches):
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[5] = math.nan
    before = copy.deepcopy(model.state_dict())
    evaluation = batches[:1] if data == "evaluation" else None
    refused(make_pruner(model, batches, eval_dataset=evaluation, criterion="magnitude").prune, "dense model is nan", "`dtype`")
    assert num_parameters(model) == num_parameters(tiny_model())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if name != "lm_head.weight")
    with pytest.raises(ValueError, match="no damage can be measured"):
        SuffixLoss(model, batches)


# ---- models that a cut, or a folder, could not hold


def masked_by_prune(linear):
    prune.l1_unstructured(linear, "weight", amount=0.3)


def parametrised(linear):
    nn.utils.parametrize.register_parametrization(linear, "weight", nn.Identity())


def weight_normed(linear):
    nn.utils.parametrizations.weight_norm(linear)


def with_an_adapter(linear):
    linear.lora_A = nn.Parameter(torch.zeros(2, linear.in_features))


@pytest.mark.parametrize("change", [masked_by_prune, parametrised, weight_normed, with_an_adapter])
@pytest.mark.parametrize("path", ["mlp.gate_proj", "mlp.down_proj", "self_attn.v_proj"])
def test_weights_that_are_computed_from_others_are_told_at_once(change, path, batches):
    model = tiny_model()
    change(model.model.layers[1].get_submodule(path))
    refused(lambda: make_pruner(model, batches), f"layers.1.{path}", "plain")


def test_channels_with_computed_weights_are_told_at_once():
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 4))
    masked_by_prune(network[0])
    images = [{"pixel_values": torch.randn(4, 3, 8, 8), "labels": torch.arange(4)}]
    refused(lambda: make_pruner(network, images, units=["channels"]), "weight_orig")


@pytest.mark.parametrize("shared", ["mlp", "self_attn", "layer", "weight", "head"])
def test_a_weight_at_two_places_is_told_at_once(shared, batches):
    model = tiny_model(num_hidden_layers=4)
    layers = model.model.layers
    if shared == "layer":
        layers[3] = layers[2]
    elif shared == "weight":
        layers[1].mlp.gate_proj.weight = layers[0].mlp.gate_proj.weight
    elif shared == "head":
        model.extra = layers[1].mlp.down_proj
    else:
        setattr(layers[1], shared, getattr(layers[0], shared))
    refused(lambda: make_pruner(model, batches), "one weight used at 2 places")
    if shared == "self_attn":
        make_pruner(model, batches, units=["ffn"])


class TwoHeads(BertPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.bert, self.first, self.second = BertModel(config), nn.Linear(config.hidden_size, 3), nn.Linear(config.hidden_size, 2)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        pooled = self.bert(input_ids, attention_mask=attention_mask).pooler_output
        return self.first(pooled), self.second(pooled)


class Doubled(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = 2 * output.logits
        return output


class Renamed(LlamaForCausalLM):
    pass


def of_class(cls):
    model = tiny_model()
    model.__class__ = cls
    return model


def with_module(model, name, module):
    setattr(model, name, module)
    return model


FOREIGN = {
    "two heads": (lambda: TwoHeads(tiny_encoder("bert").config).eval(), "`first.weight` and 3 more"),
    "a longer classifier": (
        lambda: with_module(tiny_encoder("bert"), "classifier", nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2))),
        "`classifier.0.weight`",
    ),
    "a biased head": (lambda: with_module(tiny_model(), "lm_head", nn.Linear(32, 96)), "`lm_head.bias`"),
    "an added scale": (lambda: with_module(tiny_model(), "scale", nn.Linear(2, 2)), "`scale.weight`"),
    "another forward": (lambda: of_class(Doubled), "computes something else"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_model_that_its_folder_would_not_give_back_is_told_before_any_work(name, batches, tmp_path):
    make, words = FOREIGN[name]
    model = make()
    before = copy.deepcopy(model.state_dict())
    pruner = make_pruner(model, batches, units=["ffn"], output_dir=str(tmp_path / "out"), allocation="proportional")
    refused(pruner.prune, words, "`self_check=False`")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_transformers_is_taken_whatever_its_class_is_called(family, tmp_path):
    check_reloads(tiny_model(family))
    check_reloads(of_class(Renamed))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_a_narrower_type_has_rounded_is_made_anew(dtype, caplog):
    dense, model = tiny_model(), tiny_model().to(dtype)
    assert model.model.rotary_emb.inv_freq.dtype is dtype
    check_reloads(model)
    assert torch.equal(model.model.rotary_emb.inv_freq, dense.model.rotary_emb.inv_freq)
    assert "had been rounded" in caplog.text and model.dtype is dtype


@pytest.mark.parametrize(("family", "task"), each_once(ENCODER_TASKS))
def test_an_encoder_of_transformers_is_taken(family, task):
    check_reloads(tiny_encoder(family, task=task))


# ---- types that the processor only imitates

X86 = {"architecture": "x86_64"}


@pytest.mark.parametrize(
    ("capabilities", "dtype", "slow"),
    [
        (X86, torch.bfloat16, True),
        (X86 | {"avx512_bf16": True}, torch.bfloat16, False),
        (X86 | {"amx_bf16": True}, torch.bfloat16, False),
        (X86 | {"avx512_bf16": True}, torch.float16, True),
        (X86, torch.float32, False),
        ({"architecture": "aarch64"}, torch.bfloat16, False),
    ],
)
def test_a_type_without_instructions_is_told(capabilities, dtype, slow, batches, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    told = []
    monkeypatch.setattr(checks.logger, "warning_once", told.append)
    make_pruner(tiny_model().to(dtype), batches)
    name = str(dtype).removeprefix("torch.")
    assert [text.partition(":")[0] for text in told if "no instructions" in text] == (
        [f"This CPU has no instructions for {name}. Load the model with `dtype` float32"] if slow else []
    )


def test_a_slow_training_is_told(batches, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: X86, raising=False)
    told = []
    monkeypatch.setattr(checks.logger, "warning_once", told.append)
    training = {"max_steps": 1, "bf16": True}
    SpectralPruner(
        tiny_model(),
        SpectralPruningArguments(recovery="full", training_args=training, disable_tqdm=True),
        batches,
        train_dataset=[{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}] * 2,
    ).plan()
    assert any("Leave `bf16` out of `training_args`" in text for text in told)


@pytest.mark.parametrize("rows", ["prompts", "single tokens"])
def test_a_loss_over_no_target_at_all_is_told_and_does_not_score_all_units_alike(rows, batches):
    batch = dict(batches[0])
    if rows == "prompts":
        batch["labels"] = torch.full_like(batch["input_ids"], -100)
    else:
        batch = {name: value[:, :1] for name, value in batch.items()}
    refused(lambda: make_pruner(tiny_model(), [batch], criterion="taylor"), "no position", "-100")
    make_pruner(tiny_model(), [batch, batches[1]], criterion="taylor")  # some rows may have none
