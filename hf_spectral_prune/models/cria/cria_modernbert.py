"""ModernBERT with its own FFN width and number of heads in every layer.

This file is shipped beside the weights, so it imports torch, transformers and huggingface_hub only.
"""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import (
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForMultipleChoice,
    ModernBertForQuestionAnswering,
    ModernBertForSequenceClassification,
    ModernBertForTokenClassification,
    ModernBertModel,
)

from .narrowing import CriaEncoderMixin, first, narrow_linear, narrow_rows


@strict
class CriaModernBertConfig(ModernBertConfig):
    """ModernBertConfig whose layers may differ (`per_layer_config`) and which states its head size."""

    model_type = "cria_modernbert"
    head_dim: int | None = None
    consumer_bias: list[str] | None = None

    def __post_init__(self, **kwargs) -> None:
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)


class CriaModernBertMixin(CriaEncoderMixin):
    """Narrows ModernBERT's layers, whose projections are fused."""

    @staticmethod
    def narrow_layer(layer: Any, config: Any) -> None:
        """Narrows one layer to its own config's FFN width and number of heads."""
        width = config.num_attention_heads * config.head_dim
        narrow_rows([layer.attn.Wqkv], width, num_blocks=3)  # rows: queries, keys, values
        narrow_linear(layer.attn.Wo, columns=first(width))
        narrow_rows([layer.mlp.Wi], config.intermediate_size, num_blocks=2)  # rows: activated half, other half
        narrow_linear(layer.mlp.Wo, columns=first(config.intermediate_size))


class CriaModernBertModel(CriaModernBertMixin, ModernBertModel):
    """ModernBertModel with layers of different widths."""

    config_class = CriaModernBertConfig


class CriaModernBertForMaskedLM(CriaModernBertMixin, ModernBertForMaskedLM):
    """ModernBertForMaskedLM with layers of different widths."""

    config_class = CriaModernBertConfig


class CriaModernBertForSequenceClassification(CriaModernBertMixin, ModernBertForSequenceClassification):
    """ModernBertForSequenceClassification with layers of different widths."""

    config_class = CriaModernBertConfig


class CriaModernBertForMultipleChoice(CriaModernBertMixin, ModernBertForMultipleChoice):
    """ModernBertForMultipleChoice with layers of different widths."""

    config_class = CriaModernBertConfig


class CriaModernBertForTokenClassification(CriaModernBertMixin, ModernBertForTokenClassification):
    """ModernBertForTokenClassification with layers of different widths."""

    config_class = CriaModernBertConfig


class CriaModernBertForQuestionAnswering(CriaModernBertMixin, ModernBertForQuestionAnswering):
    """ModernBertForQuestionAnswering with layers of different widths."""

    config_class = CriaModernBertConfig
