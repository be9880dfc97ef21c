"""Phi-3 with its own FFN width in every layer.

This file is shipped beside the weights, so it imports torch, transformers and huggingface_hub only.
"""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import (
    Phi3Config,
    Phi3ForCausalLM,
    Phi3ForSequenceClassification,
    Phi3ForTokenClassification,
    Phi3Model,
)

from .narrowing import CriaMixin, first, narrow_linear, narrow_rows


@strict
class CriaPhi3Config(Phi3Config):
    """Phi3Config whose layers may differ in FFN width (`per_layer_config`)."""

    model_type = "cria_phi3"
    consumer_bias: list[str] | None = None


class CriaPhi3Mixin(CriaMixin):
    """Narrows Phi-3's layers, whose FFN projections are fused."""

    @staticmethod
    def narrow_layer(layer: Any, config: Any) -> None:
        """Narrows one layer to its own config's FFN width."""
        narrow_rows([layer.mlp.gate_up_proj], config.intermediate_size, num_blocks=2)  # rows: activated half, other half
        narrow_linear(layer.mlp.down_proj, columns=first(config.intermediate_size))


class CriaPhi3Model(CriaPhi3Mixin, Phi3Model):
    """Phi3Model with layers of different widths."""

    config_class = CriaPhi3Config


class CriaPhi3ForCausalLM(CriaPhi3Mixin, Phi3ForCausalLM):
    """Phi3ForCausalLM with layers of different widths."""

    config_class = CriaPhi3Config


class CriaPhi3ForSequenceClassification(CriaPhi3Mixin, Phi3ForSequenceClassification):
    """Phi3ForSequenceClassification with layers of different widths."""

    config_class = CriaPhi3Config


class CriaPhi3ForTokenClassification(CriaPhi3Mixin, Phi3ForTokenClassification):
    """Phi3ForTokenClassification with layers of different widths."""

    config_class = CriaPhi3Config
