"""Qwen3 with its own FFN width and head counts in every layer.

This file is shipped beside the weights, so it imports torch, transformers and huggingface_hub only.
"""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import (
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForQuestionAnswering,
    Qwen3ForSequenceClassification,
    Qwen3ForTokenClassification,
    Qwen3Model,
)

from .narrowing import CriaDecoderMixin


@strict
class CriaQwen3Config(Qwen3Config):
    """Qwen3Config whose layers may differ (`per_layer_config`) and whose head count is free."""

    model_type = "cria_qwen3"
    consumer_bias: list[str] | None = None

    def validate_architecture(self) -> None:
        """Accepts any head count: the attention works with `head_dim`, not with a share of `hidden_size`."""


class CriaQwen3Model(CriaDecoderMixin, Qwen3Model):
    """Qwen3Model with layers of different widths."""

    config_class = CriaQwen3Config


class CriaQwen3ForCausalLM(CriaDecoderMixin, Qwen3ForCausalLM):
    """Qwen3ForCausalLM with layers of different widths."""

    config_class = CriaQwen3Config


class CriaQwen3ForSequenceClassification(CriaDecoderMixin, Qwen3ForSequenceClassification):
    """Qwen3ForSequenceClassification with layers of different widths."""

    config_class = CriaQwen3Config


class CriaQwen3ForTokenClassification(CriaDecoderMixin, Qwen3ForTokenClassification):
    """Qwen3ForTokenClassification with layers of different widths."""

    config_class = CriaQwen3Config


class CriaQwen3ForQuestionAnswering(CriaDecoderMixin, Qwen3ForQuestionAnswering):
    """Qwen3ForQuestionAnswering with layers of different widths."""

    config_class = CriaQwen3Config
