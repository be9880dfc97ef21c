"""How llama.cpp holds decoders that are not built like Llama; one width for all layers, as none of these reads more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from gguf import MODEL_ARCH, GGUFWriter
from torch import Tensor
from transformers import PreTrainedConfig

from .gguf_architecture import Architecture, Layer, Row, Shape

Lacks = Callable[[Shape], str | None]


def _norms(name: str, parallel: str | None = None) -> Callable[[GGUFWriter, Shape], None]:
    """Writes the epsilon of layer norms, and whether attention and FFN stand side by side where a config leaves that open."""

    def write(writer: GGUFWriter, shape: Shape) -> None:
        writer.add_layer_norm_eps(getattr(shape.config, name))
        if parallel is not None:
            writer.add_parallel_residual(getattr(shape.config, parallel))

    return write


def unless(wanted: dict[str, object], reason: str) -> Lacks:
    """Takes models whose config has these values, and no others."""
    return lambda shape: None if all(getattr(shape.config, name) == value for name, value in wanted.items()) else reason


def _parts_apart(rows: Tensor, shape: Shape, layer: Layer | None) -> Tensor:
    """Queries, then keys, then values, of a projection that keeps them together for every key/value head."""
    assert layer is not None
    groups = rows.unflatten(0, (layer.kv_heads, -1, shape.head_dim))
    return torch.cat([part.flatten(0, 2) for part in (groups[:, :-2], groups[:, -2:-1], groups[:, -1:])])


def _plus_one(rows: Tensor, shape: Shape, _: Layer | None) -> Tensor:
    return rows + 1


_NORMED_HEADS = "does not norm queries and keys, which this model does"
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
_PLAIN = Architecture(MODEL_ARCH.GPT2, biases=("norm",), whole_heads=True, partial_rope=True)
_GPT2 = replace(
    _PLAIN,
    biases=("ln_1", "ln_2", "ln_f", "c_attn", "c_proj", "c_fc"),
    transposed=("c_attn", "c_proj", "c_fc"),
    lacks=unless(
        {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
        "scales attention by the size of a head alone",
    ),
    metadata=_norms("layer_norm_epsilon"),
)
_GPT_NEOX = replace(
    _PLAIN,
    arch=MODEL_ARCH.GPTNEOX,
    biases=("norm", "query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    changes={"query_key_value": _parts_apart},
    lacks=unless({"attention_bias": True}, "has a bias in every projection of its attention"),
    metadata=_norms("layer_norm_eps", "use_parallel_residual"),
)
_PHI2 = replace(
    _PLAIN,
    arch=MODEL_ARCH.PHI2,
    biases=("norm", *_PROJECTIONS, "dense", "fc1", "fc2", "lm_head"),
    lacks=unless({"qk_layernorm": False}, _NORMED_HEADS),
    metadata=_norms("layer_norm_eps"),
)
_STARCODER2 = replace(
    _PLAIN,
    arch=MODEL_ARCH.STARCODER2,
    biases=("norm", *_PROJECTIONS, "o_proj", "c_fc", "c_proj"),
    lacks=unless({"use_bias": True}, "has a bias in every linear layer"),
    metadata=_norms("norm_epsilon"),
)
_FALCON = replace(
    _PLAIN,
    arch=MODEL_ARCH.FALCON,
    biases=("norm", "ln_f", "ln_attn", "ln_mlp"),
    changes={"query_key_value": _parts_apart},
    partial_rope=False,
    lacks=unless({"alibi": False, "parallel_attn": True}, "rotates, and has attention and FFN side by side"),
    metadata=_norms("layer_norm_epsilon"),
)
_STABLELM = replace(
    _PLAIN,
    arch=MODEL_ARCH.STABLELM,
    biases=("norm", *_PROJECTIONS),
    lacks=unless({"qk_layernorm": False}, _NORMED_HEADS),
    metadata=_norms("layer_norm_eps", "use_parallel_residual"),
)
_NEMOTRON = replace(
    _PLAIN,
    arch=MODEL_ARCH.NEMOTRON,
    biases=("norm", *_PROJECTIONS, "o_proj", "up_proj", "down_proj"),
    changes={"norm.weight": _plus_one},
    metadata=_norms("norm_eps"),
)


def _cohere_keys(writer: GGUFWriter, shape: Shape) -> None:
    writer.add_layer_norm_eps(shape.config.layer_norm_eps)
    writer.add_logit_scale(shape.config.logit_scale)


_COMMAND_R = replace(
    _PLAIN,
    arch=MODEL_ARCH.COMMAND_R,
    biases=(),
    partial_rope=False,
    output="tied",
    lacks=unless({"use_qk_norm": False}, _NORMED_HEADS),
    metadata=_cohere_keys,
)


def _gpt2_sizes(config: PreTrainedConfig) -> Layer:
    heads = config.num_attention_heads
    return Layer(config.n_inner or 4 * config.hidden_size, heads, heads)


def _neox_sizes(config: PreTrainedConfig) -> Layer:
    # Its class takes no notice of a `num_key_value_heads` that a config may name.
    heads = config.num_attention_heads
    return Layer(config.intermediate_size, heads, heads)


def _falcon_sizes(config: PreTrainedConfig) -> Layer:
    heads = config.num_attention_heads
    others = 1 if config.multi_query else heads
    return Layer(config.ffn_hidden_size, heads, config.num_kv_heads if config.new_decoder_architecture else others)


# llama.cpp computes the approximation of GELU by tanh, which differs from the exact one in the fourth digit.
_TANH, _ANY_GELU = ("gelu_new", "gelu_pytorch_tanh"), ("gelu", "gelu_new", "gelu_pytorch_tanh")
PLAIN: dict[str, Row] = {
    "gpt2": Row(_TANH, (_GPT2,), classes="LMHeadModel", sizes=_gpt2_sizes),
    "gpt_neox": Row(_ANY_GELU, (_GPT_NEOX,), sizes=_neox_sizes, saved_as={"lm_head.": "embed_out."}),
    "phi": Row(_TANH, (_PHI2,)),
    "starcoder2": Row(_TANH, (_STARCODER2,)),
    "falcon": Row(_ANY_GELU, (_FALCON,), sizes=_falcon_sizes),
    "stablelm": Row(("silu",), (_STABLELM,)),
    "nemotron": Row(("relu2",), (_NEMOTRON,)),
    "cohere": Row(("silu",), (_COMMAND_R,)),
}
