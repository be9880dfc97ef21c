"""How llama.cpp holds each family: a row a family, with the architectures that can take its weights, the plainest first.

Only where layers differ in their widths does the choice matter: most architectures read one FFN width and one head count for all
layers. `deci` (Nemotron-NAS) reads them layer by layer and computes what Llama computes; `openelm` does so with Qwen 3's norms of
queries and keys. What an architecture lacks otherwise is folded into the weights where it can be, and refused where it cannot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from gguf import MODEL_ARCH, GGUFWriter
from torch import Tensor

from .gguf_architecture import Architecture, Change, Layer, Row, Shape, interleave_halves
from .gguf_experts import moe_rows
from .gguf_plain import PLAIN


def _queries(rows: Tensor, shape: Shape, layer: Layer | None) -> Tensor:
    assert layer is not None
    return interleave_halves(rows, layer.heads)


def _keys(rows: Tensor, shape: Shape, layer: Layer | None) -> Tensor:
    assert layer is not None
    return interleave_halves(rows, layer.kv_heads)


_ROTATED: Mapping[str, Change] = {"q_proj": _queries, "k_proj": _keys}

# ---- Llama and what is like it

_LLAMA = Architecture(MODEL_ARCH.LLAMA, biases=("proj",), changes=_ROTATED, ropes=("default", "linear", "llama3"))
_DECI = replace(_LLAMA, arch=MODEL_ARCH.DECI, per_layer=True)
_QWEN2 = Architecture(MODEL_ARCH.QWEN2, biases=("q_proj", "k_proj", "v_proj"), whole_heads=True)
_QWEN3 = Architecture(MODEL_ARCH.QWEN3)
_OPENELM = replace(
    _QWEN3,
    arch=MODEL_ARCH.OPENELM,
    per_layer=True,
    joined={"self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")},
    output="tied",
)

# ---- Granite: four multipliers, which `deci` does not know, so that they go into the weights


def _granite_scales(writer: GGUFWriter, shape: Shape) -> None:
    config = shape.config
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)


_GRANITE = Architecture(MODEL_ARCH.GRANITE, biases=("proj",), changes=_ROTATED, metadata=_granite_scales)
_GRANITE_DECI = replace(
    _DECI,
    ropes=_GRANITE.ropes,
    output="own",
    changes={
        "embed_tokens": lambda rows, shape, _: rows * shape.config.embedding_multiplier,
        "lm_head": lambda rows, shape, _: rows / shape.config.logits_scaling,
        "q_proj": lambda rows, shape, layer: (
            _queries(rows, shape, layer) * (shape.config.attention_multiplier * math.sqrt(shape.head_dim))
        ),
        "k_proj": _keys,
        "o_proj": lambda rows, shape, _: rows * shape.config.residual_multiplier,
        "down_proj": lambda rows, shape, _: rows * shape.config.residual_multiplier,
    },
)

# ---- SmolLM 3: every fourth layer does not rotate


def _other_no_rope_layers(shape: Shape) -> str | None:
    rotates = [bool(kind) for kind in shape.config.no_rope_layers]
    if rotates == [(index + 1) % 4 != 0 for index in range(len(rotates))]:
        return None
    return "leaves out the rotation in every fourth layer, unlike `no_rope_layers` here"


_SMOLLM3 = Architecture(MODEL_ARCH.SMOLLM3, changes=_ROTATED, lacks=_other_no_rope_layers)

# ---- Gemma: the weights of its norms are stored less 1, and 2 and 3 scale queries by a number of their own


def _plus_one(rows: Tensor, shape: Shape, _: Layer | None) -> Tensor:
    return rows + 1


def _query_scale(shape: Shape, layers_of_27b: int) -> float:
    """What queries must be scaled by beside llama.cpp's own scale, which it takes from the head size."""
    heads, config = shape.layers[0].heads, shape.config
    own = config.hidden_size // heads if len(shape.layers) == layers_of_27b else shape.head_dim
    return math.sqrt(own / config.query_pre_attn_scalar)


def _gemma_window(writer: GGUFWriter, shape: Shape) -> None:
    assert shape.period is not None
    writer.add_sliding_window(shape.config.sliding_window)
    writer.add_sliding_window_pattern(shape.period)


def _gemma2_keys(writer: GGUFWriter, shape: Shape) -> None:
    _gemma_window(writer, shape)
    writer.add_attn_logit_softcapping(shape.config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(shape.config.final_logit_softcapping)


def _gemma3_keys(writer: GGUFWriter, shape: Shape) -> None:
    _gemma_window(writer, shape)
    if shape.config.final_logit_softcapping:
        writer.add_final_logit_softcapping(shape.config.final_logit_softcapping)


def _odd_attention(shape: Shape) -> str | None:
    if getattr(shape.config, "use_bidirectional_attention", None):
        return "attends only to what came before, and this model in both directions"
    return None if shape.period is not None else "wants windows in regular turn, unlike `layer_types` here"


def _lacks_gemma2(shape: Shape) -> str | None:
    caps = (shape.config.attn_logit_softcapping, shape.config.final_logit_softcapping)
    return _odd_attention(shape) if all(caps) else "caps attention and logits, which this model does not"


def _lacks_gemma3(shape: Shape) -> str | None:
    return _odd_attention(shape) or (
        "does not cap attention, which this model does" if shape.config.attn_logit_softcapping else None
    )


_GEMMA = Architecture(MODEL_ARCH.GEMMA, changes={"norm": _plus_one}, output="tied")
_GEMMA2 = Architecture(
    MODEL_ARCH.GEMMA2,
    changes={"norm": _plus_one, "q_proj": lambda rows, shape, _: rows * _query_scale(shape, 46)},
    windows=True,
    output="tied",
    lacks=_lacks_gemma2,
    metadata=_gemma2_keys,
)
_GEMMA3 = Architecture(
    MODEL_ARCH.GEMMA3,
    changes={"q_norm": lambda rows, shape, _: (rows + 1) * _query_scale(shape, 62), "norm": _plus_one},
    windows=True,
    lacks=_lacks_gemma3,
    metadata=_gemma3_keys,
)

# ---- Phi-3 and OLMo 2

_PHI3 = Architecture(MODEL_ARCH.PHI3, whole_heads=True, partial_rope=True, ropes=("default", "linear", "longrope"))
_PHI3_DECI = replace(
    _DECI,
    biases=(),
    ropes=("default", "linear"),
    split={
        "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    },
)
_OLMO2 = Architecture(MODEL_ARCH.OLMO2, whole_heads=True, output="own")

# ---- BERT, for its hidden states


def _bert_keys(writer: GGUFWriter, shape: Shape) -> None:
    writer.add_layer_norm_eps(shape.config.layer_norm_eps)
    writer.add_causal_attention(False)
    writer.add_token_type_count(shape.config.type_vocab_size)


_BERT = Architecture(
    MODEL_ARCH.BERT,
    biases=("query", "key", "value", "dense", "LayerNorm"),
    whole_heads=True,
    left_out=("pooler.", "embeddings.position_ids"),
    metadata=_bert_keys,
)

_SILU, _GELU = ("silu",), ("gelu_pytorch_tanh",)
FAMILIES: dict[str, Row] = {
    "llama": Row(_SILU, (_LLAMA, _DECI)),
    "mistral": Row(_SILU, (_LLAMA, _DECI)),
    "qwen2": Row(_SILU, (_QWEN2, _DECI)),
    "qwen3": Row(_SILU, (_QWEN3, _OPENELM)),
    "granite": Row(_SILU, (_GRANITE, _GRANITE_DECI)),
    "smollm3": Row(_SILU, (_SMOLLM3,)),
    "gemma": Row(_GELU, (_GEMMA,)),
    "gemma2": Row(_GELU, (_GEMMA2,)),
    "gemma3_text": Row(_GELU, (_GEMMA3,)),
    "phi3": Row(_SILU, (_PHI3, _PHI3_DECI)),
    "olmo2": Row(_SILU, (_OLMO2,)),
    **PLAIN,
    **moe_rows(_LLAMA),
    # llama.cpp computes the approximation by tanh, which differs from the exact one in the fourth digit.
    "bert": Row(("gelu", "gelu_new", "gelu_pytorch_tanh"), (_BERT,), classes="BertModel"),
}
# As people write them, for messages.
NAMES = (
    "Llama, Mistral, Qwen2, Qwen3, Granite, SmolLM3, Gemma, Gemma 2, Gemma 3, Phi-1 to Phi-4, OLMo 2, GPT-2, GPT-NeoX, "
    "StarCoder2, Falcon, StableLM, Nemotron, Command R, Mixtral, Qwen2-MoE, Qwen3-MoE and OLMoE language models, and BERT "
    "without a head"
)
