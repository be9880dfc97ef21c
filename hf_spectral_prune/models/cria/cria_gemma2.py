"""Gemma 2 with its own FFN width and head counts in every layer.

This file is shipped beside the weights, so it imports torch, transformers and huggingface_hub only.
"""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma2ForSequenceClassification,
    Gemma2ForTokenClassification,
    Gemma2Model,
)

from .narrowing import CriaDecoderMixin


@strict
class CriaGemma2Config(Gemma2Config):
    """Gemma2Config whose layers may differ (`per_layer_config`) and whose head count is free."""

    model_type = "cria_gemma2"
    consumer_bias: list[str] | None = None

    def validate_architecture(self) -> None:
        """Accepts any head count: the attention works with `head_dim`, not with a share of `hidden_size`."""


class CriaGemma2Model(CriaDecoderMixin, Gemma2Model):
    """Gemma2Model with layers of different widths."""

    config_class = CriaGemma2Config


class CriaGemma2ForCausalLM(CriaDecoderMixin, Gemma2ForCausalLM):
    """Gemma2ForCausalLM with layers of different widths."""

    config_class = CriaGemma2Config


class CriaGemma2ForSequenceClassification(CriaDecoderMixin, Gemma2ForSequenceClassification):
    """Gemma2ForSequenceClassification with layers of different widths."""

    config_class = CriaGemma2Config


class CriaGemma2ForTokenClassification(CriaDecoderMixin, Gemma2ForTokenClassification):
    """Gemma2ForTokenClassification with layers of different widths."""

    config_class = CriaGemma2Config
