"""Qwen2 with its own FFN width and head counts in every layer.

This file is shipped beside the weights, so it imports torch, transformers and huggingface_hub only.
"""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import (
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForQuestionAnswering,
    Qwen2ForSequenceClassification,
    Qwen2ForTokenClassification,
    Qwen2Model,
)

from .narrowing import CriaDecoderMixin


@strict
class CriaQwen2Config(Qwen2Config):
    """Qwen2Config whose layers may differ (`per_layer_config`) and whose head count is free."""

    model_type = "cria_qwen2"
    consumer_bias: list[str] | None = None

    def validate_architecture(self) -> None:
        """Accepts any head count: the attention works with `head_dim`, not with a share of `hidden_size`."""


class CriaQwen2Model(CriaDecoderMixin, Qwen2Model):
    """Qwen2Model with layers of different widths."""

    config_class = CriaQwen2Config


class CriaQwen2ForCausalLM(CriaDecoderMixin, Qwen2ForCausalLM):
    """Qwen2ForCausalLM with layers of different widths."""

    config_class = CriaQwen2Config


class CriaQwen2ForSequenceClassification(CriaDecoderMixin, Qwen2ForSequenceClassification):
    """Qwen2ForSequenceClassification with layers of different widths."""

    config_class = CriaQwen2Config


class CriaQwen2ForTokenClassification(CriaDecoderMixin, Qwen2ForTokenClassification):
    """Qwen2ForTokenClassification with layers of different widths."""

    config_class = CriaQwen2Config


class CriaQwen2ForQuestionAnswering(CriaDecoderMixin, Qwen2ForQuestionAnswering):
    """Qwen2ForQuestionAnswering with layers of different widths."""

    config_class = CriaQwen2Config
