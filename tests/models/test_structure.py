"""Models without a table: their FFN is read off their modules, proves itself before any work, or is refused with the reason."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import transformers
from conftest import (
    CORE,
    ENCODERS,
    FAMILIES,
    FFN_ONLY,
    FIXED_FFN,
    MOE,
    SEEING,
    SEQ2SEQ,
    TINY_SIZES,
    encoder_batch,
    logits,
    random_batch,
    refused,
    tiny_encoder,
    tiny_model,
    tiny_seeing,
    tiny_seq2seq,
)
from crias import random_plan
from products import only
from vision import VISION, tiny_vision

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.models import families
from hf_spectral_prune.models.families import family_of, structure, unit_groups
from hf_spectral_prune.models.families import groups as family_groups
from hf_spectral_prune.saving import structure_proof
from hf_spectral_prune.saving.structure_proof import check_structure
from hf_spectral_prune.surgery import apply_plan, masked, settle_class

# Types of transformers that have no table: the class that is made, and what its config needs to be tiny.
OTHERS = {
    "apertus": ("ApertusForCausalLM", {}),
    "arcee": ("ArceeForCausalLM", {}),
    "biogpt": ("BioGptForCausalLM", {}),
    "deberta-v2": ("DebertaV2ForMaskedLM", {}),
    "ernie4_5": ("Ernie4_5ForCausalLM", {}),
    "exaone4": ("Exaone4ForCausalLM", {"sliding_window": 8, "num_key_value_heads": 4}),
    "gptj": ("GPTJForCausalLM", {"n_embd": 32, "n_layer": 3, "n_head": 8, "n_inner": 24, "rotary_dim": 4, "n_positions": 128}),
    "falcon_h1": ("FalconH1ForCausalLM", {"num_key_value_heads": 4, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_state": 8}),
    "helium": ("HeliumForCausalLM", {"num_key_value_heads": 4, "head_dim": 4}),
    "megatron-bert": ("MegatronBertForMaskedLM", {}),
    "ministral": ("MinistralForCausalLM", {"sliding_window": 8, "num_key_value_heads": 4, "head_dim": 4}),
    "mpnet": ("MPNetForMaskedLM", {}),
    "olmo": ("OlmoForCausalLM", {}),
    "persimmon": ("PersimmonForCausalLM", {}),
    "roformer": ("RoFormerForMaskedLM", {"embedding_size": 32}),
    "seed_oss": ("SeedOssForCausalLM", {}),
    "xglm": ("XGLMForCausalLM", {"d_model": 32, "ffn_dim": 24, "num_layers": 3, "attention_heads": 8}),
}
_IMAGES = {"image_size": 16, "patch_size": 4, "num_channels": 3}
# Towers of models that see images and read, loaded alone; and ALBERT, whose layers are one that is used several times.
TOWERS = {
    "albert": ("AlbertForMaskedLM", {"embedding_size": 16}),
    "clip_text_model": ("CLIPTextModel", {}),
    "clip_vision_model": ("CLIPVisionModel", _IMAGES),
    "siglip_vision_model": ("SiglipVisionModel", _IMAGES),  # which has a table, as its pooler has an FFN too
}
REFUSED = {
    "mamba": ("MambaForCausalLM", {}, "`intermediate_size`"),
    "mpt": ("MptForCausalLM", {"d_model": 32, "n_heads": 4, "n_layers": 2}, "changes no weight"),
    "phimoe": ("PhimoeForCausalLM", {"num_local_experts": 4, "num_key_value_heads": 4}, "its experts lie in one tensor"),
}
# What else is refused, and the nearest way that is named.
NEAREST = {
    "led": "a decoder alone (e.g. `llama`, `qwen3`)",
    "mamba": "Take a decoder that is known",
    "mamba2": "a config field for the width of the FFN",
    "mistral3": "pass `model.get_decoder()` to `SpectralPruner`",
    "mpt": "a config field for the width of the FFN",
    "phimoe": "It has experts, whose FFN needs a table: `mixtral`",
    "qwen3_vl": "It holds a text model beside others (`qwen3_vl_text`)",
    "siglip": "pass `model.text_model` or `model.vision_model` to `SpectralPruner`",
    "swin": "Of models that see images, `vit`, `dinov2`, `resnet`",
    "wav2vec2": "Of models of speech, `whisper` is known",
}


def other_model(name: str):
    cls, fields = (OTHERS | TOWERS | {key: row[:2] for key, row in REFUSED.items()})[name]
    stock = getattr(transformers, cls)
    torch.manual_seed(0)
    return stock(stock.config_class(**TINY_SIZES | fields)).eval()


def table_model(name: str):
    """A tiny model of a row of the tests' tables, but for those that see images beside a text model."""
    if name in ENCODERS:
        return tiny_encoder(name, task="ForMaskedLM")
    if name == "siglip_text_model":
        return whole_of_towers("Siglip").text_model
    makers = {tiny_vision: VISION, tiny_seq2seq: SEQ2SEQ, other_model: TOWERS}
    return next((make for make, rows in makers.items() if name in rows), tiny_model)(name)


@pytest.fixture
def without_table(monkeypatch):
    """Takes a model's table away."""

    def hide(model) -> None:
        rest = tuple(family for family in families.FAMILIES if model.config.model_type not in family.model_types)
        monkeypatch.setattr(families, "FAMILIES", rest)

    return hide


# Families that do not show their structure, and why.
_NO_WIDTH = "no field of its config names the width of an FFN"
UNSHOWN = {
    **dict.fromkeys(FIXED_FFN, _NO_WIDTH),
    **dict.fromkeys(MOE, "the weights of its experts lie in one tensor"),
    **dict.fromkeys(SEQ2SEQ, "it has an encoder and a decoder"),
    "whisper": "Of models of speech",
    **dict.fromkeys([name for name in VISION if name != "vit"], _NO_WIDTH),
    "siglip_vision_model": "changes weights outside of one list of layers",
    "siglip_text_model": "transformers cannot build it from its config",
}
SHOWN = [name for name in (*FAMILIES, *FFN_ONLY, *ENCODERS, "vit") if name not in UNSHOWN]


@pytest.mark.proves("shown")
@pytest.mark.parametrize("name", only(CORE, SHOWN))
def test_every_family_is_found_by_structure_with_the_same_groups(name, without_table):
    model = table_model(name)
    expected = unit_groups(model, ["ffn"])
    without_table(model)
    assert unit_groups(model) == expected
    assert family_of(model.config).by_structure
    check_structure(model)


@pytest.mark.proves("unshown")
@pytest.mark.parametrize("name", UNSHOWN)
def test_families_that_do_not_show_their_structure_are_refused_without_their_table(name, without_table):
    model = table_model(name)
    without_table(model)
    refused(lambda: unit_groups(model), f"`{model.config.model_type}` is not a known family", UNSHOWN[name])


@pytest.mark.proves("unshown", of=SEEING)
@pytest.mark.parametrize("holder", SEEING)
def test_models_that_hold_a_text_model_are_refused_without_their_table(holder, without_table, monkeypatch):
    model = tiny_seeing(holder)
    without_table(model)
    monkeypatch.setattr(family_groups, "HOLDERS", {})
    refused(lambda: unit_groups(model), f"`{holder}`", "pass `model.get_decoder()`")


@pytest.mark.parametrize("name", OTHERS)
def test_other_types_prove_themselves(name):
    model = other_model(name)
    assert [group.key for group in unit_groups(model)] == [f"layers.{layer}.ffn" for layer in range(3)]
    check_structure(model, random_batch(padding="right"))


@pytest.mark.parametrize("name", only(["arcee"], ["arcee", "mpnet"]))
def test_other_types_are_pruned_saved_and_reloaded(name, tmp_path, caplog):
    model = other_model(name)
    stock, dense = type(model), num_parameters(model)
    batches = [encoder_batch(model, 4, 16, seed) for seed in (0, 1)]
    options = {"target_reduction": 0.3, "target_scope": "prunable", "round_to": 4, "min_ffn_units": 4, "disable_tqdm": True}
    args = SpectralPruningArguments(output_dir=str(tmp_path / "out"), units=["ffn"], **options)
    pruner = SpectralPruner(model, args, batches)
    output = pruner.prune()
    pruner.save_model()
    assert type(output.model) is stock
    assert num_parameters(output.model) == output.plan.parameters_after < dense
    assert any("known by structure, not by name" in note for note in output.plan.notes)
    reloaded = stock.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(logits(reloaded, batches[0]), logits(output.model, batches[0]), rtol=0, atol=1e-6)


@pytest.mark.proves("reload")
@pytest.mark.parametrize("name", TOWERS)
def test_towers_alone_and_shared_layers_are_pruned_saved_and_reloaded(name, tmp_path):
    model = other_model(name)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.15)
    sees = model.main_input_name == "pixel_values"
    inputs = {"pixel_values": torch.randn(4, 3, 16, 16)} if sees else random_batch(4, 16)
    options = {"target_reduction": 0.3, "round_to": 4, "min_ffn_units": 4, "disable_tqdm": True}
    pruner = SpectralPruner(model, SpectralPruningArguments(output_dir=str(tmp_path / "out"), **options), [inputs])
    layers = {"albert": 1, "siglip_vision_model": 4}.get(name, 3)
    assert {group.key for group in unit_groups(model)} == {f"layers.{at}.ffn" for at in range(layers)}
    output = pruner.prune()
    pruner.save_model()  # reloads in a fresh process
    assert num_parameters(output.model) == output.plan.parameters_after < output.plan.parameters_before
    reloaded = type(output.model).from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(logits(reloaded, inputs), logits(output.model, inputs), rtol=0, atol=1e-6)


@pytest.mark.proves("masked", "parameters", "again", "bfloat16")
@pytest.mark.parametrize("name", ["siglip_vision_model", "siglip_text_model"])
def test_towers_with_a_table_are_cut_as_they_are_masked_and_cut_again(name):
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.02)):
        model = table_model(name).to(dtype)
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.normal_(module.weight, std=0.15)
        sees = model.main_input_name == "pixel_values"
        inputs = {"pixel_values": torch.randn(4, 3, 16, 16, dtype=dtype)} if sees else random_batch(4, 16)
        for width in (16, 8):
            plan, dense = random_plan(model, sizes={"ffn": width}), logits(model, inputs)
            with masked(model, {key: plan.kept_index(key) for key in plan.kept}):
                expected = logits(model, inputs)
            cut = settle_class(apply_plan(model, plan))
            assert cut.dtype == dtype and num_parameters(cut) == plan.parameters_after < plan.parameters_before
            assert (logits(cut, inputs) - expected).abs().max() <= tolerance * expected.abs().max()
            assert (dense - expected).abs().max() > 1e-2, "the mask must change something"


@pytest.mark.parametrize(("prefix", "tower"), [*product(("Siglip", "CLIP"), ("vision_model", "text_model"))])
def test_tower_inside_a_model_is_cut_in_place_and_saved_with_it(prefix, tower, tmp_path):
    """What the refusal of SigLIP says."""
    whole = whole_of_towers(prefix)
    dense = num_parameters(whole)
    seeing, reading = {"pixel_values": torch.randn(4, 3, 16, 16)}, random_batch(4, 16)
    options = {"target_reduction": 0.3, "round_to": 4, "min_ffn_units": 4, "disable_tqdm": True, "units": ["ffn"]}
    inputs = seeing if tower == "vision_model" else reading
    plan = SpectralPruner(getattr(whole, tower), SpectralPruningArguments(**options), [inputs]).prune().plan
    assert dense - num_parameters(whole) == plan.parameters_before - plan.parameters_after > 0
    whole.save_pretrained(tmp_path)
    reloaded = type(whole).from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        assert torch.equal(reloaded(**seeing, **reading).logits_per_image, whole(**seeing, **reading).logits_per_image)


def test_tower_that_no_auto_class_loads_is_not_saved_alone(tmp_path):
    args = SpectralPruningArguments(output_dir=str(tmp_path / "out"), units=["ffn"])
    pruner = SpectralPruner(whole_of_towers("Siglip").text_model, args, [random_batch(4, 16)])
    refused(pruner.prune, "`SiglipTextModel` alone is loaded by no Auto class", "leave `output_dir` out")


def whole_of_towers(prefix: str):
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings")
    sizes = {name: TINY_SIZES[name] for name in names} | {"num_attention_heads": 4}
    config = getattr(transformers, f"{prefix}Config")(text_config=sizes, vision_config=sizes | _IMAGES)
    torch.manual_seed(0)
    return getattr(transformers, f"{prefix}Model")(config).eval()


@pytest.mark.parametrize("name", REFUSED)
def test_what_shows_no_ffn_is_refused_with_the_reason(name):
    _, _, reason = REFUSED[name]
    refused(lambda: unit_groups(other_model(name)), f"`{name}` is not a known family", reason)


@pytest.mark.parametrize("name", NEAREST)
def test_refusal_names_the_nearest_way(name):
    refused(lambda: family_of(transformers.AutoConfig.for_model(name)), f"`{name}`", NEAREST[name])


def test_a_config_that_its_own_class_refuses_is_told():
    config = other_model("arcee").config
    vars(config)["hidden_act"] = 3  # past the checks of the class
    refused(lambda: family_of(config), "its config is refused by transformers", "'hidden_act'")


def test_text_model_inside_a_larger_one_is_cut_in_place_and_saved_with_it(tmp_path):
    """What the refusal of LLaVA says."""
    sizes = {name: value for name, value in TINY_SIZES.items() if not name.endswith("token_id")}
    seeing = transformers.CLIPVisionConfig(**{**sizes, **_IMAGES, "projection_dim": 16, "num_attention_heads": 4})
    reading = transformers.LlamaConfig(**sizes, num_key_value_heads=4)
    config = transformers.LlavaConfig(vision_config=seeing, text_config=reading, image_token_index=5)
    torch.manual_seed(0)
    whole = transformers.LlavaForConditionalGeneration(config).eval()
    dense, inputs = num_parameters(whole), random_batch(4, 16)
    options = {"target_reduction": 0.3, "round_to": 4, "min_ffn_units": 4, "disable_tqdm": True}
    plan = SpectralPruner(whole.get_decoder(), SpectralPruningArguments(**options), [inputs]).prune().plan
    assert dense - num_parameters(whole) == plan.parameters_before - plan.parameters_after > 0
    whole.save_pretrained(tmp_path)
    reloaded = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(reloaded, inputs), logits(whole, inputs), rtol=0, atol=1e-6)


def test_a_type_that_transformers_does_not_know_is_taken_for_a_slip():
    config = transformers.LlamaConfig()
    config.model_type = "lama"
    refused(lambda: family_of(config), "`lama` is not a known family; known: `llama`", "Did you mean `llama`?")


def test_what_does_not_prove_itself_is_refused(monkeypatch):
    model, cuts = other_model("arcee"), structure_proof.narrowings
    monkeypatch.setattr(structure_proof, "narrowings", lambda *_: [])
    refused(lambda: check_structure(model), "does not prove itself", "has no place")

    def others(model, groups, kept):
        return cuts(model, groups, {group.key: torch.arange(len(kept[group.key])) for group in groups})

    monkeypatch.setattr(structure_proof, "narrowings", others)
    refused(lambda: check_structure(model), "does not prove itself", "something else than masking them")


def test_layers_of_their_own_width_and_sequential_compensation_are_refused():
    model, batches = other_model("arcee"), [random_batch(4, 16)]
    per_layer = SpectralPruningArguments(layout="per_layer", units=["ffn"])
    refused(lambda: SpectralPruner(model, per_layer, batches), "no per-layer class")
    sequential = SpectralPruningArguments(compensation="sequential", units=["ffn"])
    refused(lambda: SpectralPruner(model, sequential, batches), "least_squares")


def test_a_table_is_never_tried_by_structure(monkeypatch):
    monkeypatch.setattr(structure, "_built", lambda config: pytest.fail("built"))
    assert not family_of(tiny_model("llama").config).by_structure
