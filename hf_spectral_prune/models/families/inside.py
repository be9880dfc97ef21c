"""Text models inside models that see images too: cut in place, and the whole is saved and loaded by its own class."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .base import Family
from .llama import GATED_FFN

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# {model type: path of the text model inside the base model}, for those whose text model is of a family of its own.
HOLDERS = {"llava": "language_model", "gemma3": "language_model"}

# Its attention takes the size of a head from the number of heads, and there is no class that takes another.
QWEN2_VL = Family(
    name="qwen2_vl",
    model_types=("qwen2_vl",),
    layers="language_model.layers",
    kinds=(GATED_FFN,),
    inside=True,
    also="its text model",
)
QWEN2_5_VL = replace(QWEN2_VL, name="qwen2_5_vl", model_types=("qwen2_5_vl",))

FAMILIES = (QWEN2_VL, QWEN2_5_VL)


def family_inside(config: PreTrainedConfig, text: Family) -> Family:
    """The table of a whole model of `HOLDERS`, from the one of the text model in it; layers are all as wide as each other."""
    name = config.model_type
    layers = f"{HOLDERS[name]}.{text.layers}"
    return replace(text, name=name, model_types=(name,), layers=layers, cria=None, also="", inside=True)
