"""Mistral with its own FFN width and head counts in every layer.

This file is shipped beside the weights, so it imports torch, transformers and huggingface_hub only.
"""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    MistralForQuestionAnswering,
    MistralForSequenceClassification,
    MistralForTokenClassification,
    MistralModel,
)

from .narrowing import CriaDecoderMixin


@strict
class CriaMistralConfig(MistralConfig):
    """MistralConfig whose layers may differ (`per_layer_config`) and whose head count is free."""

    model_type = "cria_mistral"
    consumer_bias: list[str] | None = None

    def validate_architecture(self) -> None:
        """Accepts any head count: the attention works with `head_dim`, not with a share of `hidden_size`."""


class CriaMistralModel(CriaDecoderMixin, MistralModel):
    """MistralModel with layers of different widths."""

    config_class = CriaMistralConfig


class CriaMistralForCausalLM(CriaDecoderMixin, MistralForCausalLM):
    """MistralForCausalLM with layers of different widths."""

    config_class = CriaMistralConfig


class CriaMistralForSequenceClassification(CriaDecoderMixin, MistralForSequenceClassification):
    """MistralForSequenceClassification with layers of different widths."""

    config_class = CriaMistralConfig


class CriaMistralForTokenClassification(CriaDecoderMixin, MistralForTokenClassification):
    """MistralForTokenClassification with layers of different widths."""

    config_class = CriaMistralConfig


class CriaMistralForQuestionAnswering(CriaDecoderMixin, MistralForQuestionAnswering):
    """MistralForQuestionAnswering with layers of different widths."""

    config_class = CriaMistralConfig
