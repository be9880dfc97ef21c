"""SmolLM3 with its own FFN width and head counts in every layer.

This file is shipped beside the weights, so it imports torch, transformers and huggingface_hub only.
"""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import (
    SmolLM3Config,
    SmolLM3ForCausalLM,
    SmolLM3ForQuestionAnswering,
    SmolLM3ForSequenceClassification,
    SmolLM3ForTokenClassification,
    SmolLM3Model,
)

from .narrowing import CriaDecoderMixin


@strict
class CriaSmolLM3Config(SmolLM3Config):
    """SmolLM3Config whose layers may differ (`per_layer_config`) and whose head count is free."""

    model_type = "cria_smollm3"
    consumer_bias: list[str] | None = None


class CriaSmolLM3Model(CriaDecoderMixin, SmolLM3Model):
    """SmolLM3Model with layers of different widths."""

    config_class = CriaSmolLM3Config


class CriaSmolLM3ForCausalLM(CriaDecoderMixin, SmolLM3ForCausalLM):
    """SmolLM3ForCausalLM with layers of different widths."""

    config_class = CriaSmolLM3Config


class CriaSmolLM3ForSequenceClassification(CriaDecoderMixin, SmolLM3ForSequenceClassification):
    """SmolLM3ForSequenceClassification with layers of different widths."""

    config_class = CriaSmolLM3Config


class CriaSmolLM3ForTokenClassification(CriaDecoderMixin, SmolLM3ForTokenClassification):
    """SmolLM3ForTokenClassification with layers of different widths."""

    config_class = CriaSmolLM3Config


class CriaSmolLM3ForQuestionAnswering(CriaDecoderMixin, SmolLM3ForQuestionAnswering):
    """SmolLM3ForQuestionAnswering with layers of different widths."""

    config_class = CriaSmolLM3Config
