"""Vision transformers, and SigLIP's model of text: the encoder's table under other names."""

from __future__ import annotations

from dataclasses import replace

from .base import Family, Producer, Signal, UnitKind
from .llama import GATED_FFN

_FFN = UnitKind(
    kind="ffn",
    before=Signal("mlp.fc1", "output"),
    after=Signal("mlp.fc2", "input"),
    producers=(Producer("mlp.fc1"),),
    consumer="mlp.fc2",
    size_field="intermediate_size",
    config_fields=("intermediate_size",),
)
# The attention works with `head_dim`, so any head count is stock.
_HEADS = UnitKind(
    kind="heads",
    before=Signal("attention.v_proj", "output"),
    after=Signal("attention.o_proj", "input"),
    producers=(Producer("attention.q_proj"), Producer("attention.k_proj"), Producer("attention.v_proj")),
    consumer="attention.o_proj",
    size_field="num_attention_heads",
    config_fields=("num_attention_heads",),
    module_fields=(("attention", "num_attention_heads"),),
    stream=Signal("layernorm_after", "input"),
)
VIT = Family(name="vit", model_types=("vit", "cria_vit"), layers="layers", kinds=(_FFN, _HEADS), cria="cria_vit")
# Its config gives the width of the FFN as a whole multiple of the hidden size.
_DINOV2_HEADS = replace(_HEADS, stream=Signal("norm2", "input"), stream_factor="layer_scale1.lambda1")
DINOV2 = Family(
    name="dinov2",
    model_types=("dinov2", "cria_dinov2"),
    layers="encoder.layer",
    kinds=(replace(_FFN, stream_factor="layer_scale2.lambda1"), _DINOV2_HEADS),
    cria="cria_dinov2",
    stock_ffn="mlp_ratio",
    when=(("use_swiglu_ffn", False),),
)
# The largest has gated FFNs, two thirds as wide as that, rounded.
DINOV2_GATED = replace(
    DINOV2,
    kinds=(replace(GATED_FFN, module_fields=(), stream_factor="layer_scale2.lambda1"), _DINOV2_HEADS),
    stock_ffn=0,
    also="giant",
    when=(("use_swiglu_ffn", True),),
)
# The pooler has an FFN of the same width. Attention takes the size of a head from the number of heads.
SIGLIP_VISION = Family(
    name="siglip_vision_model",
    model_types=("siglip_vision_model",),
    layers="encoder.layers",
    pooler="head",
    kinds=(replace(_FFN, stream=None),),
)
# No Auto class of transformers builds it, so that it is cut inside a whole SigLIP.
SIGLIP_TEXT = Family(name="siglip_text_model", model_types=("siglip_text_model",), layers="encoder.layers", kinds=(_FFN,))

FAMILIES = (VIT, DINOV2, DINOV2_GATED, SIGLIP_VISION, SIGLIP_TEXT)
