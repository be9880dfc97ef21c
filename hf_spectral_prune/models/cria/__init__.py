"""Cria models: stock models whose layers differ in width. Importing this registers them with the Auto classes."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedModel

from . import (
    cria_bert,
    cria_camembert,
    cria_distilbert,
    cria_electra,
    cria_gemma,
    cria_gemma2,
    cria_gemma3_text,
    cria_granite,
    cria_llama,
    cria_mistral,
    cria_mobilenet_v2,
    cria_modernbert,
    cria_olmo2,
    cria_olmo3,
    cria_phi3,
    cria_qwen2,
    cria_qwen3,
    cria_qwen3_5_text,
    cria_resnet,
    cria_roberta,
    cria_smollm3,
    cria_vit,
    cria_xlm_roberta,
)

_LLAMAS = (cria_llama, cria_mistral, cria_qwen2, cria_qwen3, cria_granite, cria_smollm3)
_GEMMAS = (cria_gemma, cria_gemma2, cria_gemma3_text)
_FFN_ONLY = (cria_phi3, cria_olmo2, cria_olmo3, cria_qwen3_5_text)
_BERTS = (cria_bert, cria_roberta, cria_xlm_roberta, cria_camembert, cria_electra, cria_distilbert, cria_modernbert, cria_vit)
_CONVOLUTIONAL = (cria_resnet, cria_mobilenet_v2)
_MODULES = (*_LLAMAS, *_GEMMAS, *_FFN_ONLY, *_BERTS, *_CONVOLUTIONAL)
MODULES: dict[str, ModuleType] = {module.__name__.rpartition(".")[2]: module for module in _MODULES}

# Ending of a task class and the Auto class that loads it; `AutoModel` loads what has none of them.
AUTO_CLASSES = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForMultipleChoice": "AutoModelForMultipleChoice",
    "ForNextSentencePrediction": "AutoModelForNextSentencePrediction",
    "ForPreTraining": "AutoModelForPreTraining",
    "ForImageClassification": "AutoModelForImageClassification",
    "ForMaskedImageModeling": "AutoModelForMaskedImageModeling",
}


def auto_class_of(cls: type) -> str:
    """Name of the Auto class that loads a task class, or the task class that it is derived from."""
    names = [base.__name__ for base in cls.__mro__]
    return next((auto for name in names for ending, auto in AUTO_CLASSES.items() if name.endswith(ending)), "AutoModel")


def config_class(module: ModuleType) -> type:
    """The Cria config class of a modelling module."""
    (found,) = [value for name, value in vars(module).items() if name.startswith("Cria") and name.endswith("Config")]
    return found


def stock_type(model_type: str) -> str:
    """The model type of the stock class behind a Cria one; another type as it is."""
    if model_type not in MODULES:
        return model_type
    stock: Any = config_class(MODULES[model_type]).__mro__[1]
    return str(stock.model_type)


def task_classes(module: ModuleType) -> dict[str, type[PreTrainedModel]]:
    """{Auto class name: Cria class} of a modelling module."""
    prefix = config_class(module).__name__.removesuffix("Config")
    names = [("AutoModel", f"{prefix}Model"), *((auto, prefix + ending) for ending, auto in AUTO_CLASSES.items())]
    return {auto: getattr(module, name) for auto, name in names if hasattr(module, name)}


def auto_map(module: ModuleType) -> dict[str, str]:
    """The full `auto_map` that lets `trust_remote_code=True` load every task class from the shipped file."""
    file = module.__name__.rpartition(".")[2]
    classes = {"AutoConfig": config_class(module), **task_classes(module)}
    return {auto: f"{file}.{cls.__name__}" for auto, cls in classes.items()}


def _register() -> None:
    for name, module in MODULES.items():
        AutoConfig.register(name, config_class(module), exist_ok=True)
        for auto, cls in task_classes(module).items():
            getattr(transformers, auto).register(config_class(module), cls, exist_ok=True)
            # From here on `save_pretrained`, and so `Trainer.save_model` and `push_to_hub`, ship the modelling files.
            cls.register_for_auto_class(auto)


_register()
