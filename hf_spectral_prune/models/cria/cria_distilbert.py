"""DistilBERT with its own FFN width and number of heads in every layer.

This file is shipped beside the weights, so it imports torch, transformers and huggingface_hub only.
"""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import (
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForMultipleChoice,
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    DistilBertModel,
)

from .narrowing import CriaEncoderMixin, first, narrow_linear, narrow_rows


@strict
class CriaDistilBertConfig(DistilBertConfig):
    """DistilBertConfig whose layers may differ (`per_layer_config`) and which states its head size."""

    model_type = "cria_distilbert"
    head_dim: int | None = None
    consumer_bias: list[str] | None = None

    def __post_init__(self, **kwargs) -> None:
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)


class CriaDistilBertMixin(CriaEncoderMixin):
    """Narrows DistilBERT's layers."""

    layers_path = "transformer.layer"

    @staticmethod
    def narrow_layer(layer: Any, config: Any) -> None:
        """Narrows one layer to its own config's FFN width and number of heads."""
        attention, ffn = layer.attention, layer.ffn
        attention.n_heads = config.n_heads
        width = config.n_heads * config.head_dim
        narrow_rows((attention.q_lin, attention.k_lin, attention.v_lin), width)
        narrow_linear(attention.out_lin, columns=first(width))
        narrow_rows([ffn.lin1], config.hidden_dim)
        narrow_linear(ffn.lin2, columns=first(config.hidden_dim))


class CriaDistilBertModel(CriaDistilBertMixin, DistilBertModel):
    """DistilBertModel with layers of different widths."""

    config_class = CriaDistilBertConfig


class CriaDistilBertForMaskedLM(CriaDistilBertMixin, DistilBertForMaskedLM):
    """DistilBertForMaskedLM with layers of different widths."""

    config_class = CriaDistilBertConfig


class CriaDistilBertForSequenceClassification(CriaDistilBertMixin, DistilBertForSequenceClassification):
    """DistilBertForSequenceClassification with layers of different widths."""

    config_class = CriaDistilBertConfig


class CriaDistilBertForMultipleChoice(CriaDistilBertMixin, DistilBertForMultipleChoice):
    """DistilBertForMultipleChoice with layers of different widths."""

    config_class = CriaDistilBertConfig


class CriaDistilBertForTokenClassification(CriaDistilBertMixin, DistilBertForTokenClassification):
    """DistilBertForTokenClassification with layers of different widths."""

    config_class = CriaDistilBertConfig


class CriaDistilBertForQuestionAnswering(CriaDistilBertMixin, DistilBertForQuestionAnswering):
    """DistilBertForQuestionAnswering with layers of different widths."""

    config_class = CriaDistilBertConfig
