"""Llama with its own FFN width and head counts in every layer.

This file is shipped beside the weights, so it imports torch, transformers and huggingface_hub only.
"""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
)

from .narrowing import CriaDecoderMixin


@strict
class CriaLlamaConfig(LlamaConfig):
    """LlamaConfig whose layers may differ (`per_layer_config`) and whose head count is free."""

    model_type = "cria_llama"
    consumer_bias: list[str] | None = None

    def validate_architecture(self) -> None:
        """Accepts any head count: the attention works with `head_dim`, not with a share of `hidden_size`."""


class CriaLlamaModel(CriaDecoderMixin, LlamaModel):
    """LlamaModel with layers of different widths."""

    config_class = CriaLlamaConfig


class CriaLlamaForCausalLM(CriaDecoderMixin, LlamaForCausalLM):
    """LlamaForCausalLM with layers of different widths."""

    config_class = CriaLlamaConfig


class CriaLlamaForSequenceClassification(CriaDecoderMixin, LlamaForSequenceClassification):
    """LlamaForSequenceClassification with layers of different widths."""

    config_class = CriaLlamaConfig


class CriaLlamaForTokenClassification(CriaDecoderMixin, LlamaForTokenClassification):
    """LlamaForTokenClassification with layers of different widths."""

    config_class = CriaLlamaConfig


class CriaLlamaForQuestionAnswering(CriaDecoderMixin, LlamaForQuestionAnswering):
    """LlamaForQuestionAnswering with layers of different widths."""

    config_class = CriaLlamaConfig
