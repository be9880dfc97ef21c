"""CamemBERT with its own FFN width and number of heads in every layer.

This file is shipped beside the weights, so it imports torch, transformers and huggingface_hub only.
"""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import (
    CamembertConfig,
    CamembertForCausalLM,
    CamembertForMaskedLM,
    CamembertForMultipleChoice,
    CamembertForQuestionAnswering,
    CamembertForSequenceClassification,
    CamembertForTokenClassification,
    CamembertModel,
)

from .narrowing import CriaBertMixin


@strict
class CriaCamembertConfig(CamembertConfig):
    """CamembertConfig whose layers may differ (`per_layer_config`) and which states its head size."""

    model_type = "cria_camembert"
    head_dim: int | None = None
    consumer_bias: list[str] | None = None

    def __post_init__(self, **kwargs) -> None:
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)


class CriaCamembertModel(CriaBertMixin, CamembertModel):
    """CamembertModel with layers of different widths."""

    config_class = CriaCamembertConfig


class CriaCamembertForCausalLM(CriaBertMixin, CamembertForCausalLM):
    """CamembertForCausalLM with layers of different widths."""

    config_class = CriaCamembertConfig


class CriaCamembertForMaskedLM(CriaBertMixin, CamembertForMaskedLM):
    """CamembertForMaskedLM with layers of different widths."""

    config_class = CriaCamembertConfig


class CriaCamembertForSequenceClassification(CriaBertMixin, CamembertForSequenceClassification):
    """CamembertForSequenceClassification with layers of different widths."""

    config_class = CriaCamembertConfig


class CriaCamembertForMultipleChoice(CriaBertMixin, CamembertForMultipleChoice):
    """CamembertForMultipleChoice with layers of different widths."""

    config_class = CriaCamembertConfig


class CriaCamembertForTokenClassification(CriaBertMixin, CamembertForTokenClassification):
    """CamembertForTokenClassification with layers of different widths."""

    config_class = CriaCamembertConfig


class CriaCamembertForQuestionAnswering(CriaBertMixin, CamembertForQuestionAnswering):
    """CamembertForQuestionAnswering with layers of different widths."""

    config_class = CriaCamembertConfig
