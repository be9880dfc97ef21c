"""Gemma with its own FFN width and head counts in every layer.

This file is shipped beside the weights, so it imports torch, transformers and huggingface_hub only.
"""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GemmaForSequenceClassification,
    GemmaForTokenClassification,
    GemmaModel,
)

from .narrowing import CriaDecoderMixin


@strict
class CriaGemmaConfig(GemmaConfig):
    """GemmaConfig whose layers may differ (`per_layer_config`) and whose head count is free."""

    model_type = "cria_gemma"
    consumer_bias: list[str] | None = None


class CriaGemmaModel(CriaDecoderMixin, GemmaModel):
    """GemmaModel with layers of different widths."""

    config_class = CriaGemmaConfig


class CriaGemmaForCausalLM(CriaDecoderMixin, GemmaForCausalLM):
    """GemmaForCausalLM with layers of different widths."""

    config_class = CriaGemmaConfig


class CriaGemmaForSequenceClassification(CriaDecoderMixin, GemmaForSequenceClassification):
    """GemmaForSequenceClassification with layers of different widths."""

    config_class = CriaGemmaConfig


class CriaGemmaForTokenClassification(CriaDecoderMixin, GemmaForTokenClassification):
    """GemmaForTokenClassification with layers of different widths."""

    config_class = CriaGemmaConfig
