"""What each supported model family looks like: tables, no maths, no surgery."""

from .base import Family, Producer, Signal, Slice, UnitGroup, UnitKind, network_of
from .bert import FAMILIES as _ENCODER_FAMILIES
from .channels import FAMILIES as _CHANNEL_FAMILIES
from .decoders import FAMILIES as _DECODER_FAMILIES
from .experts import FAMILIES as _EXPERT_FAMILIES
from .ffn_only import FAMILIES as _FFN_FAMILIES
from .groups import (
    Part,
    check_unshared,
    consumers,
    family_of,
    kinds_of,
    layer_field,
    layers_of,
    max_tokens,
    module_of,
    parts,
    row_of,
    stack_of,
    take,
    unit_groups,
)
from .inside import FAMILIES as _INSIDE_FAMILIES
from .llama import FAMILIES as _LLAMA_FAMILIES
from .seq2seq import FAMILIES as _SEQ2SEQ_FAMILIES
from .vit import FAMILIES as _VIT_FAMILIES

FAMILIES: tuple[Family, ...] = (
    *_LLAMA_FAMILIES,
    *_DECODER_FAMILIES,
    *_FFN_FAMILIES,
    *_EXPERT_FAMILIES,
    *_INSIDE_FAMILIES,
    *_ENCODER_FAMILIES,
    *_SEQ2SEQ_FAMILIES,
    *_VIT_FAMILIES,
    *_CHANNEL_FAMILIES,
)

__all__ = [
    "FAMILIES",
    "Family",
    "Part",
    "Producer",
    "Signal",
    "Slice",
    "UnitGroup",
    "UnitKind",
    "check_unshared",
    "consumers",
    "family_of",
    "kinds_of",
    "layer_field",
    "layers_of",
    "max_tokens",
    "module_of",
    "network_of",
    "parts",
    "row_of",
    "stack_of",
    "take",
    "unit_groups",
]
