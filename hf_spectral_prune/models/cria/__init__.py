"""Cria models: stock models whose layers differ in width. Each family is a file, which is loaded when it is first needed."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# Stock types that are not spelt like the file that is made from them.
_SPELT = {"cria_xlm_roberta": "xlm-roberta"}
# {Cria model type, which is also the name of the file with its classes: the stock type that it is made from}.
STOCK_TYPES = {
    file.name: _SPELT.get(file.name, file.name.removeprefix("cria_"))
    for file in iter_modules(__path__)
    if file.name.startswith("cria_")
}

# Ending of a task class and the Auto class that loads it; `AutoModel` loads what has none of them.
AUTO_CLASSES = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    # These read images beside text, and end as encoder-decoders do.
    "LlavaForConditionalGeneration": "AutoModelForImageTextToText",
    "Gemma3ForConditionalGeneration": "AutoModelForImageTextToText",
    "Qwen2VLForConditionalGeneration": "AutoModelForImageTextToText",
    "Qwen2_5_VLForConditionalGeneration": "AutoModelForImageTextToText",
    "WhisperForConditionalGeneration": "AutoModelForSpeechSeq2Seq",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
    "MTModel": "AutoModelForSeq2SeqLM",
    "EncoderModel": "AutoModelForTextEncoding",
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


def stock_type(model_type: str) -> str:
    """The model type of the stock class behind a Cria one; another type as it is."""
    return STOCK_TYPES.get(model_type, model_type)


def load(model_type: str) -> ModuleType:
    """The module with the classes of a Cria model type, and of no other."""
    return import_module(f".{model_type}", __name__)


def config_class(module: ModuleType) -> type[PreTrainedConfig]:
    """The Cria config class of a family's module."""
    (found,) = [value for name, value in vars(module).items() if name.startswith("Cria") and name.endswith("Config")]
    return found


def task_classes(module: ModuleType) -> dict[str, type[PreTrainedModel]]:
    """{Auto class name: Cria class} of a family's module."""
    prefix = config_class(module).__name__.removesuffix("Config")
    names = [("AutoModel", f"{prefix}Model"), *((auto, prefix + ending) for ending, auto in AUTO_CLASSES.items())]
    return {auto: getattr(module, name) for auto, name in names if hasattr(module, name)}


def auto_map(module: ModuleType) -> dict[str, str]:
    """The full `auto_map` that lets `trust_remote_code=True` load every task class from the shipped file."""
    file = module.__name__.rpartition(".")[2]
    classes = {"AutoConfig": config_class(module), **task_classes(module)}
    return {auto: f"{file}.{cls.__name__}" for auto, cls in classes.items()}
