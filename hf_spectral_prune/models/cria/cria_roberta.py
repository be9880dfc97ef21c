"""RoBERTa with its own FFN width and number of heads in every layer.

This file is shipped beside the weights, so it imports torch, transformers and huggingface_hub only.
"""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import (
    RobertaConfig,
    RobertaForCausalLM,
    RobertaForMaskedLM,
    RobertaForMultipleChoice,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
)

from .narrowing import CriaBertMixin


@strict
class CriaRobertaConfig(RobertaConfig):
    """RobertaConfig whose layers may differ (`per_layer_config`) and which states its head size."""

    model_type = "cria_roberta"
    head_dim: int | None = None
    consumer_bias: list[str] | None = None

    def __post_init__(self, **kwargs) -> None:
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)


class CriaRobertaModel(CriaBertMixin, RobertaModel):
    """RobertaModel with layers of different widths."""

    config_class = CriaRobertaConfig


class CriaRobertaForCausalLM(CriaBertMixin, RobertaForCausalLM):
    """RobertaForCausalLM with layers of different widths."""

    config_class = CriaRobertaConfig


class CriaRobertaForMaskedLM(CriaBertMixin, RobertaForMaskedLM):
    """RobertaForMaskedLM with layers of different widths."""

    config_class = CriaRobertaConfig


class CriaRobertaForSequenceClassification(CriaBertMixin, RobertaForSequenceClassification):
    """RobertaForSequenceClassification with layers of different widths."""

    config_class = CriaRobertaConfig


class CriaRobertaForMultipleChoice(CriaBertMixin, RobertaForMultipleChoice):
    """RobertaForMultipleChoice with layers of different widths."""

    config_class = CriaRobertaConfig


class CriaRobertaForTokenClassification(CriaBertMixin, RobertaForTokenClassification):
    """RobertaForTokenClassification with layers of different widths."""

    config_class = CriaRobertaConfig


class CriaRobertaForQuestionAnswering(CriaBertMixin, RobertaForQuestionAnswering):
    """RobertaForQuestionAnswering with layers of different widths."""

    config_class = CriaRobertaConfig
