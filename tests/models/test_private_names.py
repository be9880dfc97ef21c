"""Names of transformers and accelerate that this package uses though nobody has promised them: told here when one moves."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
from collections.abc import Iterator
from inspect import signature
from pathlib import Path

import pytest
import transformers
from conftest import tiny_model
from transformers import AutoModelForCausalLM, PreTrainedConfig, Trainer
from transformers.models.auto.auto_factory import _BaseAutoModelClass

import hf_spectral_prune
from hf_spectral_prune.models.cria.cria_llama import CriaLlamaConfig

_LIBRARIES = ("transformers", "accelerate")


def _trees() -> Iterator[ast.Module]:
    for file in sorted(Path(hf_spectral_prune.__file__).parent.rglob("*.py")):
        yield ast.parse(file.read_text(encoding="utf-8"))


def _deep_imports() -> list[tuple[str, str]]:
    """(module, name) of what is imported from below the libraries' first level."""
    return sorted(
        {
            (node.module, name.name)
            for tree in _trees()
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.level == 0 and "." in (node.module or "")
            for name in node.names
            if node.module is not None and node.module.split(".")[0] in _LIBRARIES
        }
    )


def _private_attributes() -> set[str]:
    """Attributes with a leading underscore that are read or written on other objects than `self`."""
    found = set()
    for node in (node for tree in _trees() for node in ast.walk(tree)):
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
            found.add(node.attr)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            found |= {word.value for word in node.args[1:2] if isinstance(word, ast.Constant)}
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


@pytest.mark.parametrize(("module", "name"), _deep_imports(), ids=str)
def test_what_is_imported_from_below_the_first_level_is_still_there(module, name):
    assert hasattr(importlib.import_module(module), name) or importlib.util.find_spec(f"{module}.{name}")


# Those that are not of transformers: of Python, torch, the Hub's client.
_OTHERS = {"_asdict", "_exit", "_hub_mixin_config", "_load_from_state_dict", "_orig_mod", "_original_order"}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loaded")
    tiny_model().save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder), folder


# Each with what we take for granted about it.
PRIVATE = {
    "_apply_gate": lambda model, folder: callable(tiny_model("gpt_oss").model.layers[0].mlp.experts._apply_gate),
    "_attn_implementation": lambda model, folder: model.config._attn_implementation in ("sdpa", "eager"),
    "_name_or_path": lambda model, folder: model.config._name_or_path == str(folder),
    "_commit_hash": lambda model, folder: "_commit_hash" in inspect.getsource(PreTrainedConfig),
    "_determine_best_metric": lambda model, folder: (
        {"metrics", "trial"} < {*signature(Trainer._determine_best_metric).parameters}
    ),
    "_get_collator_with_removed_columns": lambda model, folder: (
        {"data_collator", "description"} < {*signature(Trainer._get_collator_with_removed_columns).parameters}
    ),
    "_hf_hook": lambda model, folder: (
        AutoModelForCausalLM.from_pretrained(folder, device_map={"model": "cpu", "lm_head": "disk"}).lm_head._hf_hook.offload
    ),
    "_save_checkpoint": lambda model, folder: [*signature(Trainer._save_checkpoint).parameters] == ["self", "model", "trial"],
    "_weight_conversions": lambda model, folder: model._weight_conversions == [],
    "_model_mapping": lambda model, folder: (
        isinstance(AutoModelForCausalLM, type)
        and issubclass(AutoModelForCausalLM, _BaseAutoModelClass)
        and type(model) is AutoModelForCausalLM._model_mapping[transformers.LlamaConfig]
    ),
}


@pytest.mark.parametrize("name", PRIVATE)
def test_private_attribute_of_transformers_means_what_it_did(name, loaded):
    assert PRIVATE[name](*loaded)


def test_every_private_attribute_in_use_is_known():
    assert _private_attributes() == {*PRIVATE, *_OTHERS}


def test_attributes_that_any_config_answers_while_only_ffn_widths_differ():
    """Strangers ask for head counts, even with a default: none may raise where only FFN widths differ."""
    config = CriaLlamaConfig(
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        per_layer_config={1: {"intermediate_size": 16}},
    )
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (8, 4, 4)
    assert getattr(config, "num_kv_heads", 1) == 1
    with pytest.raises(RuntimeError, match="per-layer attribute"):
        _ = config.intermediate_size
