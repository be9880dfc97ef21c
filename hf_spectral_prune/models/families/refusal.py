"""What is said of a model type that cannot be pruned: why not, and the nearest thing that can."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto

from ...utils.words import did_you_mean
from .base import Family

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_IMAGES = {
    *modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    *modeling_auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
    *modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
    *modeling_auto.MODEL_FOR_BACKBONE_MAPPING_NAMES,
}
# What reads sound, of which a table is needed.
SPEECH = {
    *modeling_auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
    *modeling_auto.MODEL_FOR_CTC_MAPPING_NAMES,
    *modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
}
# A model of text and one of images side by side.
TWO_TOWERS = ("clip", "siglip")
_TABLE = "write a table for it (`docs/extend.md`: thirty lines)"


def refusal(config: PreTrainedConfig, families: Iterable[Family], reason: str | None) -> str:
    """The message for a model type without a table, in one line.

    Args:
        families: those that have one.
        reason: why it is not known by structure either, to go on from "its FFN is not known by structure: "; None where that
            was not tried.
    """
    model_type, families = str(config.model_type), tuple(families)
    why = "" if reason is None else f", and its FFN is not known by structure: {reason}"
    said = f"Model type `{model_type}` is not a known family{why}"
    if model_type not in CONFIG_MAPPING:
        known = {name: None for family in families for name in family.model_types if not name.startswith("cria_")}
        return f"{said}; known: {_listed(known)}.{did_you_mean(model_type, known)} Or {_TABLE}."
    return f"{said}. {_nearest(config, families, reason or '')}"


def _nearest(config: PreTrainedConfig, families: tuple[Family, ...], reason: str) -> str:
    """What can be done instead, by what kind of model it is."""
    model_type = str(config.model_type)
    text = [family.name for family in families if family.layers]
    if model_type in TWO_TOWERS:
        return (
            "Its towers are pruned one at a time: pass `model.text_model` or `model.vision_model` to `SpectralPruner` with a "
            "uniform layout, which cuts it in place, and save the whole model."
        )
    if config.get_text_config() is not config:
        inner = config.get_text_config().model_type
        return (
            f"It holds a text model beside others (`{inner}`), which is pruned by itself where its type is known: pass "
            f"`model.get_decoder()`. Else {_TABLE}."
        )
    if model_type in SPEECH:
        known = _listed(name for name in text if name in SPEECH)
        return f"Of models of speech, {known} is known. Take that, or {_TABLE}."
    if getattr(config, "is_encoder_decoder", False):
        several = [family.name for family in families if family.decoder]
        known = f" Those with a table are {_listed(several)}." if several else ""
        return f"Encoder-decoders need a table.{known} Take one of them, a decoder alone (e.g. `llama`, `qwen3`), or {_TABLE}."
    if has_experts(config):
        known = _listed(family.name for family in families if family.experts is not None)
        return f"It has experts, whose FFN needs a table: {known} have one. Take one of them, or {_TABLE}."
    if model_type in _IMAGES or "vision" in model_type:
        known = _listed(family.name for family in families if _sees(family) and family.name != "torch")
        return (
            f"Of models that see images, {known} are known, and any CNN or MLP in plain PyTorch (`docs/vision.md`). "
            f"Take one of those, or {_TABLE}."
        )
    kind = "encoder" if model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES else "decoder"
    named = ("bert", "roberta", "modernbert") if kind == "encoder" else ("llama", "qwen3", "gpt2")
    known = _listed(name for name in named if name in text)
    if "changes no weight" in reason or "no field of its config" in reason:
        return f"What is missing is a config field for the width of the FFN. Take a {kind} that has one (e.g. {known})."
    return f"Take a {kind} that is known (e.g. {known}), or {_TABLE}."


def _sees(family: Family) -> bool:
    return family.traced or any(name in _IMAGES for name in family.model_types)


def has_experts(config: PreTrainedConfig) -> bool:
    """Whether the FFN, or a part of it, lies in experts."""
    return any(
        getattr(config, name, None) for name in ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in dict.fromkeys(names))
