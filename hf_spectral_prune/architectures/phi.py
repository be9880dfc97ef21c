"""Phi-3 and Phi-4: FFN neurons with a fused projection. Their attention reads its head counts from the model's config."""

from __future__ import annotations

from .base import Family, Producer, Signal, UnitKind

# `gate_up_proj` holds the half that goes through the activation first, then the half it is multiplied with.
_FUSED_FFN = UnitKind(
    kind="ffn",
    before=Signal("mlp.gate_up_proj", "output", block=0, num_blocks=2),
    after=Signal("mlp.down_proj", "input"),
    producers=(Producer("mlp.gate_up_proj", num_blocks=2),),
    consumer="mlp.down_proj",
    size_field="intermediate_size",
    config_fields=("intermediate_size",),
)

PHI3 = Family(name="phi3", model_types=("phi3", "cria_phi3"), layers="layers", kinds=(_FUSED_FFN,), cria="cria_phi3")

FAMILIES = (PHI3,)
