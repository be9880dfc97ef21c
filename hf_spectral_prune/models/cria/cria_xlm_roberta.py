"""XLM-RoBERTa with its own FFN width and number of heads in every layer.

This file is shipped beside the weights, so it imports torch, transformers and huggingface_hub only.
"""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import (
    XLMRobertaConfig,
    XLMRobertaForCausalLM,
    XLMRobertaForMaskedLM,
    XLMRobertaForMultipleChoice,
    XLMRobertaForQuestionAnswering,
    XLMRobertaForSequenceClassification,
    XLMRobertaForTokenClassification,
    XLMRobertaModel,
)

from .narrowing import CriaBertMixin


@strict
class CriaXLMRobertaConfig(XLMRobertaConfig):
    """XLMRobertaConfig whose layers may differ (`per_layer_config`) and which states its head size."""

    model_type = "cria_xlm_roberta"
    head_dim: int | None = None
    consumer_bias: list[str] | None = None

    def __post_init__(self, **kwargs) -> None:
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)


class CriaXLMRobertaModel(CriaBertMixin, XLMRobertaModel):
    """XLMRobertaModel with layers of different widths."""

    config_class = CriaXLMRobertaConfig


class CriaXLMRobertaForCausalLM(CriaBertMixin, XLMRobertaForCausalLM):
    """XLMRobertaForCausalLM with layers of different widths."""

    config_class = CriaXLMRobertaConfig


class CriaXLMRobertaForMaskedLM(CriaBertMixin, XLMRobertaForMaskedLM):
    """XLMRobertaForMaskedLM with layers of different widths."""

    config_class = CriaXLMRobertaConfig


class CriaXLMRobertaForSequenceClassification(CriaBertMixin, XLMRobertaForSequenceClassification):
    """XLMRobertaForSequenceClassification with layers of different widths."""

    config_class = CriaXLMRobertaConfig


class CriaXLMRobertaForMultipleChoice(CriaBertMixin, XLMRobertaForMultipleChoice):
    """XLMRobertaForMultipleChoice with layers of different widths."""

    config_class = CriaXLMRobertaConfig


class CriaXLMRobertaForTokenClassification(CriaBertMixin, XLMRobertaForTokenClassification):
    """XLMRobertaForTokenClassification with layers of different widths."""

    config_class = CriaXLMRobertaConfig


class CriaXLMRobertaForQuestionAnswering(CriaBertMixin, XLMRobertaForQuestionAnswering):
    """XLMRobertaForQuestionAnswering with layers of different widths."""

    config_class = CriaXLMRobertaConfig
