"""The Cria classes: one file a family, known to transformers by name before any of them is loaded."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
import transformers
from conftest import tiny_model
from products import only
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_spectral_prune.models.cria import AUTO_CLASSES, STOCK_TYPES, auto_class_of, config_class, load, task_classes
from hf_spectral_prune.models.integrations import _Announced


@pytest.mark.parametrize("model_type", STOCK_TYPES)
def test_classes_of_a_family_are_its_files_and_say_so(model_type):
    module = load(model_type)
    config = config_class(module)
    assert config.model_type == model_type
    assert config.__bases__[-1].model_type == STOCK_TYPES[model_type]
    assert type(transformers.AutoConfig.for_model(model_type)) is config
    made = {
        name: value for name, value in vars(module).items() if isinstance(value, type) and value.__module__ == module.__name__
    }
    assert {cls for cls in made.values() if not cls.__name__.endswith("Mixin")} == {config, *task_classes(module).values()}
    for name, cls in made.items():
        assert cls.__name__ == cls.__qualname__ == name
        assert pickle.loads(pickle.dumps(cls)) is cls
    for auto, cls in task_classes(module).items():
        assert cls.config_class is config
        assert auto_class_of(cls) == auto_class_of(cls.__bases__[-1]) == auto
        assert getattr(transformers, auto)._model_mapping[config] is cls
        assert cls._auto_class == auto


def test_auto_classes_named_are_those_of_transformers():
    assert all(hasattr(transformers, auto) for auto in AUTO_CLASSES.values())


IN_A_FRESH_PROCESS = """
import pickle, sys
{imports}
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
stands_for = CONFIG_MAPPING["cria_llama"]
assert not [name for name in sys.modules if name.startswith("hf_spectral_prune.models.cria.cria_")]
sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=32)
config = AutoConfig.for_model("cria_llama", **sizes, per_layer_config={{0: {{"intermediate_size": 8}}}})
assert type(config) is CONFIG_MAPPING["cria_llama"] and type(config).__name__ == "CriaLlamaConfig"
assert isinstance(config, stands_for)
model = AutoModelForCausalLM.from_config(config)
assert type(model).__name__ == "CriaLlamaForCausalLM"
assert [layer.mlp.up_proj.out_features for layer in model.model.layers] == [8, 32]
assert not [name for name in sys.modules if name.startswith("hf_spectral_prune.models.cria.cria_") and "llama" not in name]
"""


@pytest.mark.parametrize("first", only(["transformers"], ["hf_spectral_prune", "transformers"]))
def test_class_is_loaded_when_it_is_first_needed(first, forks):
    imports = ["import hf_spectral_prune", "from transformers import AutoModelForCausalLM"]
    code = IN_A_FRESH_PROCESS.format(imports="; ".join(imports if first == "hf_spectral_prune" else reversed(imports)))
    run = subprocess.run if first == "hf_spectral_prune" else forks.run  # which has imported transformers
    done = run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_what_stands_for_a_config_class_acts_like_it(monkeypatch):
    real = config_class(load("cria_llama"))
    stands_for = _Announced("cria_llama", (), {})
    monkeypatch.setitem(CONFIG_MAPPING._extra_content, "cria_llama", stands_for)
    for config in (stands_for(hidden_size=16), stands_for.from_dict({"hidden_size": 16})):
        assert type(config) is real and isinstance(config, stands_for) and config.hidden_size == 16
    assert not isinstance(real.__bases__[-1](), stands_for)
    assert stands_for.model_type == "cria_llama"
    assert pickle.loads(pickle.dumps(CONFIG_MAPPING))["cria_llama"] is real


def test_unpickled_model_is_known_and_ships_its_code(forks, tmp_path):
    config = tiny_model().config.to_dict() | {"per_layer_config": {1: {"intermediate_size": 8}}}
    del config["model_type"]
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model("cria_llama", **config))
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(model))
    code = f"""
import pickle
from pathlib import Path
model = pickle.loads(Path({str(tmp_path / "model.pkl")!r}).read_bytes())
model.save_pretrained({str(tmp_path / "out")!r})
"""
    done = forks.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {"cria_llama.py", "narrowing.py"} <= {path.name for path in (tmp_path / "out").iterdir()}
