"""A model loaded by name has all the weights of its checkpoint, its head among them, or is refused in one line."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CORE, ENCODER_TASKS, FAMILIES, FFN_ONLY, logits, random_batch, refused, tiny_encoder, tiny_model
from products import each_once, only
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.arguments import ModelArguments
from hf_spectral_prune.models.loading import load_model
from hf_spectral_prune.saving.reload import check_in_fresh_process


def load(folder: Path) -> PreTrainedModel:
    return load_model(ModelArguments(model_name_or_path=str(folder), device="cpu"))


def saved(model: PreTrainedModel, folder: Path, rename=lambda name: name, **config: Any) -> Path:
    """A checkpoint whose weights are renamed (None: left out), and whose config has other fields (None: left out)."""
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    renamed = {new: value for name, value in weights.items() if (new := rename(name)) is not None}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    fields = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))
    return folder


@pytest.mark.parametrize("family", only(CORE, [*FAMILIES, *FFN_ONLY]))
def test_no_stock_checkpoint_raises_a_false_alarm(family, tmp_path):
    """Also without `architectures`: the names of the weights tell the class, tied heads included."""
    model = tiny_model(family)
    folder = saved(model, tmp_path / "named")
    assert type(load(folder)) is type(model)
    folder = saved(model, tmp_path / "unnamed", architectures=None)
    if family == "gpt_neox":  # transformers stores its head under another name than the class has
        refused(lambda: load(folder), "`embed_out.weight`", "Set `architectures`")
        return
    found = load(folder)
    assert type(found) is type(model)
    assert torch.equal(logits(found, random_batch()), logits(model, random_batch()))


@pytest.mark.parametrize(("family", "task"), each_once(ENCODER_TASKS))
def test_no_encoder_raises_a_false_alarm(family, task, tmp_path):
    model = tiny_encoder(family, task=task)
    assert type(load(saved(model, tmp_path / "m"))) is type(model)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model.", "student.backbone."])
def test_names_with_the_prefix_of_a_wrapper_are_told_with_the_prefix(prefix, tmp_path):
    folder = saved(tiny_model(), tmp_path / "m", lambda name: prefix + name)
    refused(lambda: load(folder), f"`{prefix}` is in the names", f"Take `{prefix}` out", "more would be made up at random")


@pytest.mark.parametrize("piece", ["_fsdp_wrapped_module.", "_checkpoint_wrapped_module."])
def test_names_with_a_wrapper_around_each_layer_are_told_with_what_it_put_in(piece, tmp_path):
    folder = saved(tiny_model(), tmp_path / "m", lambda name: re.sub(r"(layers\.\d+\.|^)", rf"\1{piece}", name))
    refused(lambda: load(folder), f"`{piece}` is in the names of", f"Take `{piece}` out", "more would be made up at random")


def test_a_wrapper_around_one_layer_is_told_with_the_number_of_its_weights(tmp_path):
    folder = saved(tiny_model(), tmp_path / "m", lambda name: name.replace("layers.1.", "layers.1._orig_mod."))
    refused(lambda: load(folder), "`_orig_mod.` is in the names of 9 weights", "`model.layers.1.input_layernorm.weight`")


@pytest.mark.parametrize("lost", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"])
def test_one_weight_that_is_missing_is_named(lost, tmp_path):
    folder = saved(tiny_model(), tmp_path / "m", lambda name: None if name == lost else name)
    refused(lambda: load(folder), f"`{lost}` would be made up at random")


def test_a_layer_that_is_missing_is_told_as_one(tmp_path):
    folder = saved(tiny_model(), tmp_path / "m", lambda name: None if ".layers.2." in name else name)
    refused(lambda: load(folder), "Nothing of `model.layers.2` is in it", "`num_hidden_layers` 3")
    folder = saved(tiny_model(), tmp_path / "n", num_hidden_layers=5)
    refused(lambda: load(folder), "Nothing of `model.layers.3`, `model.layers.4` is in it", "`num_hidden_layers` 5")


def test_weights_that_would_be_lost_are_named(tmp_path):
    folder = saved(tiny_model(), tmp_path / "m", num_hidden_layers=2)
    refused(lambda: load(folder), "has no place for", "`model.layers.2.", "`num_hidden_layers`")
    model = tiny_model()
    model.v_head = torch.nn.Linear(32, 1)
    refused(lambda: load(saved(model, tmp_path / "n")), "`v_head.bias`, `v_head.weight`")


def test_a_weight_of_another_shape_is_told_with_both(tmp_path):
    folder = saved(tiny_model(), tmp_path / "m", vocab_size=100)
    refused(lambda: load(folder), "(96, 32)", "(100, 32)", "1 more differ")


def test_a_head_is_never_thrown_away(tmp_path):
    folder = saved(tiny_model(), tmp_path / "m", architectures=["LlamaModel"])
    refused(lambda: load(folder), "`lm_head.weight`", "set `architectures` in `config.json` to it", "LlamaForCausalLM")
    for name, unknown in {"unknown": ["MyNet"], "none": None, "empty": []}.items():
        assert type(load(saved(tiny_model(), tmp_path / name, architectures=unknown))).__name__ == "LlamaForCausalLM"


def test_a_class_that_weights_cannot_tell_is_asked_for(tmp_path):
    model = tiny_encoder("bert", num_labels=1)
    folder = saved(model, tmp_path / "m", architectures=None)
    refused(lambda: load(folder), "has no `architectures`", "`BertForSequenceClassification`, `BertForMultipleChoice`")
    folder = saved(tiny_model(), tmp_path / "n", lambda name: None if name == "lm_head.weight" else name, architectures=["Mine"])
    refused(lambda: load(folder), "names `Mine`", "the weights have no head", "Set `architectures`")


def test_the_head_of_another_task_may_stay_behind_beside_a_head(tmp_path):
    """As in the best known checkpoint of all: BERT's masked language model with its next-sentence head and its pooler."""
    model = tiny_encoder("bert", task="ForPreTraining")
    found = load(saved(model, tmp_path / "m", architectures=["BertForMaskedLM"]))
    assert type(found).__name__ == "BertForMaskedLM"


def test_a_bare_encoder_may_lack_its_pooler(tmp_path):
    model = tiny_encoder("bert", task="Model")
    folder = saved(model, tmp_path / "m", lambda name: None if "pooler" in name else name)
    assert torch.equal(logits(load(folder), random_batch()), logits(model, random_batch()))
    model = tiny_encoder("bert")  # a classifier reads it
    folder = saved(model, tmp_path / "n", lambda name: None if "pooler" in name else name)
    refused(lambda: load(folder), "`bert.pooler.dense.bias`")


@pytest.mark.parametrize(
    ("method", "config"),
    {
        "gptq": {"quant_method": "gptq", "bits": 4},
        "awq": {"quant_method": "awq", "bits": 4},
        "fp8": {"quant_method": "fp8"},
        "compressed-tensors": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        "mxfp4": {"quant_method": "mxfp4"},
        "bitsandbytes": {"load_in_4bit": True},
        "no-such-method": {"quant_method": "no-such-method"},
    }.items(),
)
def test_quantised_checkpoints_are_told_by_their_config(method, config, tmp_path):
    folder = saved(tiny_model(), tmp_path / "m", quantization_config=config)
    refused(lambda: load(folder), f"is quantised by `{method}`", "Prune the model that it was made from")


def test_quantised_checkpoints_are_told_by_files_and_by_names(tmp_path):
    folder = saved(tiny_model(), tmp_path / "m")
    (folder / "quantize_config.json").write_text("{}")
    refused(lambda: load(folder), "is quantised (`quantize_config.json`)")
    folder = saved(tiny_model(), tmp_path / "n", lambda name: name.replace("up_proj.weight", "up_proj.qweight"))
    refused(lambda: load(folder), "holds quantised weights (`model.layers.0.mlp.up_proj.qweight`")


@pytest.mark.parametrize("with_config", [False, True])
def test_an_adapter_is_told_with_its_base_model(with_config, tmp_path):
    folder = saved(tiny_model(), tmp_path / "m")
    if not with_config:
        (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    refused(lambda: load(folder), "is a PEFT adapter of `org/base`", "merge_and_unload")


def test_shards_and_pickles_are_read_too(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    saved(model, tmp_path / "bin")
    torch.save(model.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    (tmp_path / "bin" / "model.safetensors").unlink()
    for name in ("shards", "bin"):
        config = json.loads((tmp_path / name / "config.json").read_text())
        (tmp_path / name / "config.json").write_text(json.dumps(config | {"architectures": None}))
        assert type(load(tmp_path / name)) is type(model)


@pytest.mark.slow
def test_the_self_check_fails_where_the_folder_lacks_a_weight_that_the_probe_does_not_show(tmp_path):
    model = tiny_model(attention_bias=True)
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.bias.zero_()  # as transformers makes it up
    folder = saved(model, tmp_path / "m", lambda name: None if name.endswith("layers.1.self_attn.q_proj.bias") else name)
    with pytest.raises(RuntimeError, match=r"lacks weights: `model\.layers\.1\.self_attn\.q_proj\.bias`"):
        check_in_fresh_process(folder, model)
    shutil.rmtree(folder)
    check_in_fresh_process(saved(model, folder), model)


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_models_that_a_device_map_has_offloaded_are_pruned_like_others(place, tmp_path, batches):
    """Where there is no accelerator, "disk" is the only place that a map can offload to; hooks bring the weights for a moment."""
    tiny_model().save_pretrained(tmp_path / "dense")
    device_map = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    device_map |= {f"model.layers.{layer}": place if layer else "cpu" for layer in range(3)}
    spread = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", device_map=device_map, offload_folder=str(tmp_path / "off"))
    assert any(parameter.is_meta for parameter in spread.parameters()) == (place == "disk")
    args = SpectralPruningArguments(target_reduction=0.3, target_scope="prunable", round_to=4, disable_tqdm=True)
    found = SpectralPruner(spread, args, batches).prune()
    expected = SpectralPruner(AutoModelForCausalLM.from_pretrained(tmp_path / "dense"), args, batches).prune()
    assert found.plan.kept == expected.plan.kept
    found.model.save_pretrained(tmp_path / "pruned")
    weights = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned").state_dict()
    for name, value in expected.model.state_dict().items():
        assert torch.equal(weights[name], value), name
    assert torch.equal(logits(expected.model, batches[0]), logits(found.model, batches[0]))


@pytest.mark.parametrize("place", ["lm_head", "model.norm"])
def test_what_lies_on_the_disk_outside_of_the_layers_is_brought_to_memory(place, tmp_path, batches):
    tiny_model().save_pretrained(tmp_path / "dense")
    device_map = dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head", "model.layers"), "cpu")
    spread = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", device_map=device_map | {place: "disk"})
    pruner = SpectralPruner(spread, SpectralPruningArguments(target_reduction=0.3, disable_tqdm=True), batches)
    assert not any(parameter.is_meta for parameter in pruner.model.parameters())


def test_a_weight_in_two_shards_is_told(tmp_path):
    """transformers would take the one in the last file, whatever the index says."""
    folder = tmp_path / "m"
    tiny_model().save_pretrained(folder, max_shard_size="20KB")
    first, *_, last = sorted(folder.glob("model-*.safetensors"))
    name, value = next(iter(load_file(first).items()))
    save_file(load_file(last) | {name: torch.zeros_like(value)}, last, {"format": "pt"})
    refused(lambda: load(folder), f"`{name}` is in", first.name, last.name)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_pickled_set_of_weights_beside_the_one_that_is_read_must_be_the_same(sharded, tmp_path):
    """Newer weights that a script has put beside the old ones with `torch.save` would not be read, and nobody would say so."""
    folder = tmp_path / "m"
    model = tiny_model()
    model.save_pretrained(folder, **({"max_shard_size": "20KB"} if sharded else {}))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save({name.replace("norm", "Norm"): value.half() for name, value in state.items()}, folder / "pytorch_model.bin")
    load(folder)
    state["model.layers.1.mlp.up_proj.weight"] += 1e-4
    torch.save(state, folder / "pytorch_model.bin")
    refused(
        lambda: load(folder), "two sets of weights", "`pytorch_model.bin`", "`model.layers.1.mlp.up_proj.weight`", "Take away"
    )
    (folder / "pytorch_model.bin").write_bytes(b"broken")
    load(folder)  # a file that is not read does no harm
    (folder / "pytorch_model.bin").unlink()
    (folder / "pytorch_model.bin.index.json").write_text('{"metadata": {}, "weight_map": {"lm_head.weight": "absent.bin"}}')
    load(folder)


def test_weights_that_transformers_would_not_load_are_not_looked_at(tmp_path):
    """A whole file goes before an index: an old index without its shards is harmless, a second set of weights is refused."""
    sharded, folder = tmp_path / "sharded", saved(tiny_model(), tmp_path / "m", architectures=None)
    tiny_model(tie_word_embeddings=True).save_pretrained(sharded, max_shard_size="20KB")
    shutil.copy(sharded / "model.safetensors.index.json", folder)
    assert torch.equal(logits(load(folder), random_batch()), logits(tiny_model(), random_batch()))
    shard = sorted(sharded.glob("model-*.safetensors"))[0]
    shutil.copy(shard, folder)
    refused(lambda: load(folder), "two sets of weights", f"`{shard.name}`", "Take away")
    (folder / "model.safetensors.index.json").unlink()
    load(folder)


def test_weights_without_values_are_told(batches):
    with torch.device("meta"):
        model = tiny_model()
    refused(lambda: SpectralPruner(model, SpectralPruningArguments(), batches), "`meta` device", "`from_pretrained`")


def test_a_model_whose_outputs_have_no_names_is_told(tmp_path, batches):
    model = tiny_encoder()
    model.config.return_dict = False
    refused(lambda: SpectralPruner(model, SpectralPruningArguments(), batches), "`return_dict` false", "Set it to true")
    model.save_pretrained(tmp_path)
    refused(lambda: load_model(ModelArguments(model_name_or_path=str(tmp_path))), "`return_dict` false")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("https://huggingface.co/org/model", ["is an address", "`owner/name`"]),
        ("{folder}/model.safetensors", ["is a file", "`{folder}`"]),
        ("{folder}/m.GGUF", ["is a file", "`gguf_file` to `m.GGUF`"]),
    ],
)
def test_names_that_are_no_folder_are_answered_with_what_to_give(name, words, tmp_path):
    for file in ("model.safetensors", "m.GGUF"):
        (tmp_path / file).write_bytes(b"x")
    model = ModelArguments(model_name_or_path=name.format(folder=tmp_path))
    refused(lambda: load_model(model), *(word.format(folder=tmp_path) for word in words))
