"""Decoders whose FFN neurons alone are pruned, each for a reason of its attention."""

from __future__ import annotations

from dataclasses import replace

from .base import Family, Producer, Signal, UnitKind
from .llama import GATED_FFN

# `gate_up_proj` holds the half that goes through the activation first, then the half it is multiplied with.
FUSED_FFN = UnitKind(
    kind="ffn",
    before=Signal("mlp.gate_up_proj", "output", block=0, num_blocks=2),
    after=Signal("mlp.down_proj", "input"),
    producers=(Producer("mlp.gate_up_proj", num_blocks=2),),
    consumer="mlp.down_proj",
    size_field="intermediate_size",
    config_fields=("intermediate_size",),
)

# Its attention reads the head counts from the config of the whole model at every step.
PHI3 = Family(name="phi3", model_types=("phi3", "cria_phi3"), layers="layers", kinds=(FUSED_FFN,), cria="cria_phi3", also="Phi-4")
# Their norms of queries and keys take all heads together: without one of them, the others would be scaled anew.
OLMO2 = Family(
    name="olmo2",
    model_types=("olmo2", "cria_olmo2"),
    layers="layers",
    kinds=(replace(GATED_FFN, stream_norm="post_feedforward_layernorm"),),
    cria="cria_olmo2",
)
OLMO3 = replace(OLMO2, name="olmo3", model_types=("olmo3", "cria_olmo3"), cria="cria_olmo3")
# Three of four layers have a linear attention in place of heads.
QWEN3_5 = replace(
    OLMO2, name="qwen3_5_text", model_types=("qwen3_5_text", "cria_qwen3_5_text"), kinds=(GATED_FFN,), cria="cria_qwen3_5_text"
)

FAMILIES = (PHI3, OLMO2, OLMO3, QWEN3_5)
