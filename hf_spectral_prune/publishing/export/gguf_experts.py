"""How llama.cpp holds mixtures of experts: one tensor for a matrix of all experts, where files of transformers have one each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gguf import MODEL_ARCH, GGUFWriter
from transformers import PreTrainedConfig

from .gguf_architecture import Architecture, Layer, Row, Shape
from .gguf_plain import unless

# {what the GGUF names know: what files call it of one expert}, inside a layer.
_EXPERTS = {f"mlp.experts.{name}": f"mlp.experts.{{}}.{name}" for name in ("gate_proj", "up_proj", "down_proj")}
_MIXTRAL_EXPERTS = {
    f"mlp.experts.{name}": f"block_sparse_moe.experts.{{}}.{own}"
    for name, own in (("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2"))
}


def _count(writer: GGUFWriter, shape: Shape) -> None:
    writer.add_expert_count(shape.num_experts)
    writer.add_expert_used_count(shape.config.num_experts_per_tok)


def _qwen_keys(writer: GGUFWriter, shape: Shape) -> None:
    _count(writer, shape)
    writer.add_expert_feed_forward_length(shape.config.moe_intermediate_size)
    if hasattr(shape.config, "shared_expert_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(shape.config.shared_expert_intermediate_size)


def _qwen_sizes(config: PreTrainedConfig) -> Layer:
    return Layer(config.moe_intermediate_size, config.num_attention_heads, config.num_key_value_heads)


_EVERY_LAYER = {"decoder_sparse_step": 1, "mlp_only_layers": []}
_QWEN2_MOE = Architecture(
    MODEL_ARCH.QWEN2MOE,
    biases=("q_proj", "k_proj", "v_proj"),
    whole_heads=True,
    lacks=unless(
        {**_EVERY_LAYER, "norm_topk_prob": False}, "has experts in every layer and takes the router's weights as they are"
    ),
    metadata=_qwen_keys,
)
_QWEN3_MOE = Architecture(
    MODEL_ARCH.QWEN3MOE,
    lacks=unless({**_EVERY_LAYER, "norm_topk_prob": True}, "has experts in every layer, and their weights sum to one"),
    metadata=_qwen_keys,
)
_OLMOE = Architecture(
    MODEL_ARCH.OLMOE,
    whole_heads=True,
    lacks=unless({"norm_topk_prob": False, "clip_qkv": None}, "clips no projections and takes the router's weights as they are"),
    metadata=_count,
)


def moe_rows(llama: Architecture) -> Mapping[str, Row]:
    """The rows of mixtures; Mixtral goes where Llama goes, and its queries and keys are changed alike."""
    mixtral = replace(llama, biases=(), ropes=("default", "linear"), metadata=_count)
    return {
        "mixtral": Row(("silu",), (mixtral,), experts=_MIXTRAL_EXPERTS, saved_as={"mlp.gate.": "block_sparse_moe.gate."}),
        "qwen2_moe": Row(("silu",), (_QWEN2_MOE,), sizes=_qwen_sizes, experts=_EXPERTS),
        "qwen3_moe": Row(("silu",), (_QWEN3_MOE,), sizes=_qwen_sizes, experts=_EXPERTS),
        "olmoe": Row(("silu",), (_OLMOE,), experts=_EXPERTS),
    }
