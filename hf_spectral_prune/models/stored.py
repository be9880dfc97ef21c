"""What a checkpoint is, read off its config and the names of its weights before any of them is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import safe_open
from transformers import PreTrainedConfig
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
    find_adapter_config_file,
)

from ..utils.types import Json
from .cria import AUTO_CLASSES
from .loading_report import head_names, is_pooler, named, task_classes_of

if TYPE_CHECKING:
    from transformers.utils.quantization_config import QuantizationConfigMixin

_ADAPTER = "adapter_config.json"
# Where tools write how they quantised, if not in `config.json`.
_QUANTISATION_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")


def check_whole_model(name: str) -> None:
    """Checks that a folder, or a model on the Hub, is not a mere adapter of another model.

    Raises:
        ValueError: it is; says of which one, and how to merge it.
    """
    file = Path(name) / _ADAPTER if Path(name).is_dir() else find_adapter_config_file(name)
    if file is None or not Path(file).is_file():
        return
    try:
        base = json.loads(Path(file).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError):
        base = None
    of = f" of `{base}`" if base else ""
    raise ValueError(
        f"`{name}` is a PEFT adapter{of} (it has `{_ADAPTER}`), not a whole model. Merge it first: "
        f'`PeftModel.from_pretrained(model, "{name}").merge_and_unload().save_pretrained(FOLDER)`.'
    )


def is_mxfp4(config: PreTrainedConfig) -> bool:
    """Whether the weights are packed as gpt-oss is published, which transformers unpacks whole when asked to."""
    marks = getattr(config, "quantization_config", None)
    return config.model_type == "gpt_oss" and isinstance(marks, dict) and _method(marks) == "mxfp4"


def check_not_quantised(config: PreTrainedConfig, name: str) -> None:
    """Checks that a config, or a file beside it, does not speak of quantised weights, but for those that are unpacked.

    Raises:
        ValueError: it does; names the method.
    """
    for part in (config, config.get_text_config()):
        for field in ("quantization_config", "compression_config"):
            marks = getattr(part, field, None)
            if marks and not is_mxfp4(part):
                raise ValueError(_quantised(name, _method(marks), f"`{field}` in `config.json`"))
    for file in _QUANTISATION_FILES:
        if (Path(name) / file).is_file():
            raise ValueError(_quantised(name, None, f"`{file}`"))


def _method(marks: Json | QuantizationConfigMixin) -> str | None:
    marks = marks if isinstance(marks, dict) else marks.to_dict()
    method = marks.get("quant_method")
    if method is None and (marks.get("load_in_4bit") or marks.get("load_in_8bit")):
        method = "bitsandbytes"
    return None if method is None else str(getattr(method, "value", method))


def _quantised(name: str, method: str | None, sign: str) -> str:
    how = f" by `{method}`" if method else ""
    return (
        f"`{name}` is quantised{how} ({sign}), and quantised weights cannot be cut. Prune the model that it was made from, and "
        "quantise the result."
    )


def auto_class(config: PreTrainedConfig, name: str) -> Any:
    """The Auto class that loads a checkpoint with the head it has: by `architectures`, else by the names of its weights.

    Raises:
        ValueError: neither says which class it is.
    """
    architecture = str((config.architectures or [""])[0])
    by_ending = next((auto for ending, auto in AUTO_CLASSES.items() if architecture.endswith(ending)), None)
    if by_ending is not None:
        return getattr(transformers, by_ending)
    if architecture.endswith("Model") and _is_known(config, architecture):
        return transformers.AutoModel
    return _class_of_weights(config, name, architecture)


def _is_known(config: PreTrainedConfig, architecture: str) -> bool:
    base: Any = transformers.AutoModel._model_mapping
    return type(config) in base and base[type(config)].__name__ == architecture


def _class_of_weights(config: PreTrainedConfig, name: str, architecture: str) -> Any:
    """The Auto class whose head is exactly what the weights hold beside the base model."""
    stored = stored_names(name)
    classes = task_classes_of(config)
    prefix = f"{classes[0].base_model_prefix}." if classes else ""
    if not any(weight.startswith(prefix) for weight in stored):
        return transformers.AutoModel  # saved from the base model; what it lacks is told when it is loaded
    fitting = []
    outside = {weight for weight in stored if not weight.startswith(prefix) or is_pooler(weight)}
    for cls in classes:
        head = head_names(cls, config)
        if outside <= set(head) and all(weight in outside or tied for weight, tied in head.items()):
            fitting.append(cls)
    # The same head looks back alone in a decoder, and both ways in an encoder.
    unlikely = "ForMaskedLM" if getattr(config, "is_decoder", False) else ("ForCausalLM", "LMHeadModel")
    if len(fitting) > 1:
        fitting = [cls for cls in fitting if not cls.__name__.endswith(unlikely)]
    if len(fitting) == 1:
        [ending] = [ending for ending in AUTO_CLASSES if fitting[0].__name__.endswith(ending)]
        return getattr(transformers, AUTO_CLASSES[ending])
    says = (
        f"`architectures` in its `config.json` names `{architecture}`, which transformers does not know"
        if architecture
        else ("its `config.json` has no `architectures`")
    )
    others = [weight for weight in stored if not weight.startswith(prefix)]
    what = f"the weights outside the base model are {named(others)}" if others else "the weights have no head"
    which = f"fit {named(cls.__name__ for cls in fitting)} alike" if fitting else "fit none of its classes"
    raise ValueError(f"Which class is `{name}`? {says[0].upper()}{says[1:]}, and {what}, which {which}. Set `architectures`.")


def stored_names(name: str) -> list[str]:
    """Names of the weights of a checkpoint, sorted; only headers and indices of its files are read.

    Raises:
        OSError: it has no weights.
    """
    if (file := _file(name, SAFE_WEIGHTS_NAME)) is not None:  # in the order in which transformers looks for them
        with safe_open(file, "pt") as weights:
            return sorted(weights.keys())
    if (file := _file(name, SAFE_WEIGHTS_INDEX_NAME)) is not None:
        return _in_index(file)
    if (file := _file(name, WEIGHTS_NAME)) is not None:
        return sorted(torch.load(file, map_location="meta", weights_only=True))
    if (file := _file(name, WEIGHTS_INDEX_NAME)) is not None:
        return _in_index(file)
    raise OSError(f"`{name}` has no weights ({SAFE_WEIGHTS_NAME} or {WEIGHTS_NAME}). Get the whole checkpoint.")


def _in_index(file: str) -> list[str]:
    return sorted(json.loads(Path(file).read_text(encoding="utf-8"))["weight_map"])


def _file(name: str, file: str) -> str | None:
    # A file of the Hub is loaded right afterwards, so nothing is fetched twice.
    missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    return cached_file(name, file, **missing)
