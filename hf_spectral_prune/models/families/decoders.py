"""Decoders that are not built like Llama: plain FFNs, attention and FFN side by side, or projections that hold several parts."""

from __future__ import annotations

from dataclasses import replace

from .base import Family, Producer, Signal, UnitKind
from .ffn_only import FUSED_FFN
from .llama import GATED_FFN, KV_GROUPS

# Where attention and FFN read the same and are both added to the stream, what is behind either is behind the layer.
_BEHIND_LAYER = Signal("", "output")
_BIASED_HEADS = replace(KV_GROUPS, bias_field="attention_bias")


def _plain_ffn(first: str, second: str, size_field: str = "intermediate_size", bias_field: str | None = None) -> UnitKind:
    """An FFN of two linear layers."""
    return UnitKind(
        kind="ffn",
        before=Signal(first, "output"),
        after=Signal(second, "input"),
        producers=(Producer(first),),
        consumer=second,
        size_field=size_field,
        config_fields=(size_field,),
        bias_field=bias_field,
    )


STARCODER2 = Family(
    name="starcoder2",
    model_types=("starcoder2", "cria_starcoder2"),
    layers="layers",
    kinds=(_plain_ffn("mlp.c_fc", "mlp.c_proj", bias_field="use_bias"), replace(KV_GROUPS, bias_field="use_bias")),
    cria="cria_starcoder2",
)
NEMOTRON = Family(
    name="nemotron",
    model_types=("nemotron", "cria_nemotron"),
    layers="layers",
    kinds=(_plain_ffn("mlp.up_proj", "mlp.down_proj", bias_field="mlp_bias"), _BIASED_HEADS),
    cria="cria_nemotron",
)
# Command R+ normalises queries and keys with weights for every head.
COHERE = Family(
    name="cohere",
    model_types=("cohere", "cria_cohere"),
    layers="layers",
    kinds=(GATED_FFN, replace(_BIASED_HEADS, stream=_BEHIND_LAYER, blocked_by="self_attn.q_norm")),
    cria="cria_cohere",
    also="Command R",
)
COHERE2 = replace(
    COHERE, name="cohere2", model_types=("cohere2", "cria_cohere2"), cria="cria_cohere2", also="Command R7B, Command A"
)
GLM = Family(name="glm", model_types=("glm", "cria_glm"), layers="layers", kinds=(FUSED_FFN, KV_GROUPS), cria="cria_glm")
GLM4 = replace(
    GLM,
    name="glm4",
    model_types=("glm4", "cria_glm4"),
    kinds=(
        replace(FUSED_FFN, stream_norm="post_mlp_layernorm"),
        replace(KV_GROUPS, stream_norm="post_self_attn_layernorm"),
    ),
    cria="cria_glm4",
)
# A norm of queries and keys would be built for another head size than that of the weights.
PHI = Family(
    name="phi",
    model_types=("phi", "cria_phi"),
    layers="layers",
    kinds=(
        _plain_ffn("mlp.fc1", "mlp.fc2"),
        replace(
            KV_GROUPS,
            after=Signal("self_attn.dense", "input"),
            consumer="self_attn.dense",
            stream=_BEHIND_LAYER,
            blocked_by="self_attn.q_layernorm",
        ),
    ),
    cria="cria_phi",
    also="Phi-1, Phi-1.5, Phi-2",
)
_STABLELM_HEADS = replace(
    KV_GROUPS,
    module_fields=(("self_attn", "num_heads"), ("self_attn", "num_key_value_heads")),
    blocked_by="self_attn.q_layernorm",
)
STABLELM = Family(
    name="stablelm",
    model_types=("stablelm", "cria_stablelm"),
    layers="layers",
    kinds=(GATED_FFN, _STABLELM_HEADS),
    cria="cria_stablelm",
    stock_heads="fixed",
    when=(("use_parallel_residual", False),),
)
STABLELM_PARALLEL = replace(
    STABLELM,
    kinds=(GATED_FFN, replace(_STABLELM_HEADS, stream=_BEHIND_LAYER)),
    when=(("use_parallel_residual", True),),
)
_OPT_HEADS = UnitKind(
    kind="heads",
    before=Signal("self_attn.v_proj", "output"),
    after=Signal("self_attn.out_proj", "input"),
    producers=(Producer("self_attn.q_proj"), Producer("self_attn.k_proj"), Producer("self_attn.v_proj")),
    consumer="self_attn.out_proj",
    size_field="num_attention_heads",
    config_fields=("num_attention_heads",),
    bias_field="enable_bias",
    module_fields=(("self_attn", "num_heads"),),
    stream=Signal("final_layer_norm", "input"),
)
OPT = Family(
    name="opt",
    model_types=("opt", "cria_opt"),
    layers="decoder.layers",
    kinds=(_plain_ffn("fc1", "fc2", "ffn_dim", "enable_bias"), _OPT_HEADS),
    cria="cria_opt",
    stock_heads="fixed",
    when=(("do_layer_norm_before", True),),
)
# OPT-350m has its norms behind the sums.
OPT_POST_NORM = replace(
    OPT,
    kinds=(
        replace(OPT.kinds[0], stream=Signal("final_layer_norm", "input")),
        replace(_OPT_HEADS, stream=Signal("self_attn_layer_norm", "input")),
    ),
    when=(("do_layer_norm_before", False),),
)
# The attention of the following keeps queries, keys and values in one projection, and its head size follows from the hidden size.
GPT_NEOX = Family(
    name="gpt_neox",
    model_types=("gpt_neox", "cria_gpt_neox"),
    layers="layers",
    kinds=(_plain_ffn("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),),
    cria="cria_gpt_neox",
    also="Pythia",
)
FALCON = Family(
    name="falcon",
    model_types=("falcon", "cria_falcon"),
    layers="h",
    kinds=(_plain_ffn("mlp.dense_h_to_4h", "mlp.dense_4h_to_h", "ffn_hidden_size"),),
    cria="cria_falcon",
    tuple_layers=True,
)
# Its config has no field for the width of the FFN. Each head has a slope of its own for positions, made from the number of heads.
BLOOM = Family(
    name="bloom",
    model_types=("bloom", "cria_bloom"),
    layers="h",
    kinds=(_plain_ffn("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),),
    cria="cria_bloom",
    stock_ffn=4,
    tuple_layers=True,
)
GPT2 = Family(
    name="gpt2",
    model_types=("gpt2", "cria_gpt2"),
    layers="h",
    kinds=(_plain_ffn("mlp.c_fc", "mlp.c_proj", "n_inner"),),
    cria="cria_gpt2",
)

FAMILIES = (
    STARCODER2,
    NEMOTRON,
    COHERE,
    COHERE2,
    GLM,
    GLM4,
    PHI,
    STABLELM,
    STABLELM_PARALLEL,
    OPT,
    OPT_POST_NORM,
    GPT_NEOX,
    FALCON,
    BLOOM,
    GPT2,
)
