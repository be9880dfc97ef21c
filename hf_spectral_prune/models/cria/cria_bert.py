"""BERT with its own FFN width and number of heads in every layer.

This file is shipped beside the weights, so it imports torch, transformers and huggingface_hub only.
"""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertLMHeadModel,
    BertModel,
)

from .narrowing import CriaBertMixin


@strict
class CriaBertConfig(BertConfig):
    """BertConfig whose layers may differ (`per_layer_config`) and which states its head size."""

    model_type = "cria_bert"
    head_dim: int | None = None
    consumer_bias: list[str] | None = None

    def __post_init__(self, **kwargs) -> None:
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)


class CriaBertModel(CriaBertMixin, BertModel):
    """BertModel with layers of different widths."""

    config_class = CriaBertConfig


class CriaBertForPreTraining(CriaBertMixin, BertForPreTraining):
    """BertForPreTraining with layers of different widths."""

    config_class = CriaBertConfig


class CriaBertLMHeadModel(CriaBertMixin, BertLMHeadModel):
    """BertLMHeadModel with layers of different widths."""

    config_class = CriaBertConfig


class CriaBertForMaskedLM(CriaBertMixin, BertForMaskedLM):
    """BertForMaskedLM with layers of different widths."""

    config_class = CriaBertConfig


class CriaBertForNextSentencePrediction(CriaBertMixin, BertForNextSentencePrediction):
    """BertForNextSentencePrediction with layers of different widths."""

    config_class = CriaBertConfig


class CriaBertForSequenceClassification(CriaBertMixin, BertForSequenceClassification):
    """BertForSequenceClassification with layers of different widths."""

    config_class = CriaBertConfig


class CriaBertForMultipleChoice(CriaBertMixin, BertForMultipleChoice):
    """BertForMultipleChoice with layers of different widths."""

    config_class = CriaBertConfig


class CriaBertForTokenClassification(CriaBertMixin, BertForTokenClassification):
    """BertForTokenClassification with layers of different widths."""

    config_class = CriaBertConfig


class CriaBertForQuestionAnswering(CriaBertMixin, BertForQuestionAnswering):
    """BertForQuestionAnswering with layers of different widths."""

    config_class = CriaBertConfig
