"""The text model of Gemma 3 with its own FFN width and head counts in every layer.

This file is shipped beside the weights, so it imports torch, transformers and huggingface_hub only.
"""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Gemma3TextForSequenceClassification,
    Gemma3TextModel,
)

from .narrowing import CriaDecoderMixin


@strict
class CriaGemma3TextConfig(Gemma3TextConfig):
    """Gemma3TextConfig whose layers may differ (`per_layer_config`) and whose head count is free."""

    model_type = "cria_gemma3_text"
    consumer_bias: list[str] | None = None

    def validate_architecture(self) -> None:
        """Accepts any head count: the attention works with `head_dim`, not with a share of `hidden_size`."""


class CriaGemma3TextModel(CriaDecoderMixin, Gemma3TextModel):
    """Gemma3TextModel with layers of different widths."""

    config_class = CriaGemma3TextConfig


class CriaGemma3TextForCausalLM(CriaDecoderMixin, Gemma3ForCausalLM):
    """Gemma3ForCausalLM with layers of different widths."""

    config_class = CriaGemma3TextConfig


class CriaGemma3TextForSequenceClassification(CriaDecoderMixin, Gemma3TextForSequenceClassification):
    """Gemma3TextForSequenceClassification with layers of different widths."""

    config_class = CriaGemma3TextConfig
