"""Vision Transformer: the encoder's table under other names. Its attention works with `head_dim`, so any head count is stock."""

from __future__ import annotations

from .base import Family, Producer, Signal, UnitKind

VIT = Family(
    name="vit",
    model_types=("vit", "cria_vit"),
    layers="layers",
    kinds=(
        UnitKind(
            kind="ffn",
            before=Signal("mlp.fc1", "output"),
            after=Signal("mlp.fc2", "input"),
            producers=(Producer("mlp.fc1"),),
            consumer="mlp.fc2",
            size_field="intermediate_size",
            config_fields=("intermediate_size",),
        ),
        UnitKind(
            kind="heads",
            before=Signal("attention.v_proj", "output"),
            after=Signal("attention.o_proj", "input"),
            producers=(Producer("attention.q_proj"), Producer("attention.k_proj"), Producer("attention.v_proj")),
            consumer="attention.o_proj",
            size_field="num_attention_heads",
            config_fields=("num_attention_heads",),
            module_fields=(("attention", "num_attention_heads"),),
            stream=Signal("layernorm_after", "input"),
        ),
    ),
    cria="cria_vit",
)

FAMILIES = (VIT,)
