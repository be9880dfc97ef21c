"""Llama and the families with the same table: gated FFN neurons and key/value groups of a decoder layer."""

from __future__ import annotations

from dataclasses import replace

from .base import Family, Producer, Signal, UnitKind

GATED_FFN = UnitKind(
    kind="ffn",
    before=Signal("mlp.gate_proj", "output"),
    after=Signal("mlp.down_proj", "input"),
    producers=(Producer("mlp.gate_proj"), Producer("mlp.up_proj")),
    consumer="mlp.down_proj",
    size_field="intermediate_size",
    config_fields=("intermediate_size",),
    module_fields=(("mlp", "intermediate_size"),),
)

# One unit is a key/value head with its query heads, so that the number of query heads per key/value head stays whole.
KV_GROUPS = UnitKind(
    kind="heads",
    before=Signal("self_attn.v_proj", "output"),
    after=Signal("self_attn.o_proj", "input"),
    producers=(Producer("self_attn.q_proj"), Producer("self_attn.k_proj"), Producer("self_attn.v_proj")),
    consumer="self_attn.o_proj",
    size_field="num_key_value_heads",
    config_fields=("num_attention_heads", "num_key_value_heads"),
    stream=Signal("post_attention_layernorm", "input"),
)

# Families whose config switches biases on have a stock class with room for a repair.
_BIASED_HEADS = replace(KV_GROUPS, bias_field="attention_bias")
_BIASED = (replace(GATED_FFN, bias_field="mlp_bias"), _BIASED_HEADS)

LLAMA = Family(
    name="llama",
    model_types=("llama", "cria_llama"),
    layers="layers",
    kinds=_BIASED,
    cria="cria_llama",
    stock_heads="divides_hidden",
)
MISTRAL = Family(
    name="mistral", model_types=("mistral", "cria_mistral"), layers="layers", kinds=(GATED_FFN, KV_GROUPS), cria="cria_mistral"
)
QWEN2 = replace(MISTRAL, name="qwen2", model_types=("qwen2", "cria_qwen2"), cria="cria_qwen2", also="Qwen2.5")
# The q/k norms work inside one head_dim, so they are shared by all heads and stay whole.
QWEN3 = Family(
    name="qwen3",
    model_types=("qwen3", "cria_qwen3"),
    layers="layers",
    kinds=(GATED_FFN, _BIASED_HEADS),
    cria="cria_qwen3",
)
GRANITE = Family(
    name="granite",
    model_types=("granite", "cria_granite"),
    layers="layers",
    kinds=tuple(replace(row, stream_factor="residual_multiplier") for row in _BIASED),
    cria="cria_granite",
)
SMOLLM3 = replace(GRANITE, name="smollm3", model_types=("smollm3", "cria_smollm3"), kinds=_BIASED, cria="cria_smollm3")
GEMMA = replace(QWEN3, name="gemma", model_types=("gemma", "cria_gemma"), cria="cria_gemma")
GEMMA2 = Family(
    name="gemma2",
    model_types=("gemma2", "cria_gemma2"),
    layers="layers",
    kinds=(
        replace(GATED_FFN, stream_norm="post_feedforward_layernorm"),
        replace(
            _BIASED_HEADS,
            stream=Signal("pre_feedforward_layernorm", "input"),
            stream_norm="post_attention_layernorm",
        ),
    ),
    cria="cria_gemma2",
    stock_heads="divides_hidden",
)
# `gemma3` itself is the model that sees images too; its text model comes alone in the small sizes.
GEMMA3 = replace(GEMMA2, name="gemma3_text", model_types=("gemma3_text", "cria_gemma3_text"), cria="cria_gemma3_text")

FAMILIES = (LLAMA, MISTRAL, QWEN2, QWEN3, GRANITE, SMOLLM3, GEMMA, GEMMA2, GEMMA3)
