"""ELECTRA with its own FFN width and number of heads in every layer.

This file is shipped beside the weights, so it imports torch, transformers and huggingface_hub only.
"""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import (
    ElectraConfig,
    ElectraForCausalLM,
    ElectraForMaskedLM,
    ElectraForMultipleChoice,
    ElectraForPreTraining,
    ElectraForQuestionAnswering,
    ElectraForSequenceClassification,
    ElectraForTokenClassification,
    ElectraModel,
)

from .narrowing import CriaBertMixin


@strict
class CriaElectraConfig(ElectraConfig):
    """ElectraConfig whose layers may differ (`per_layer_config`) and which states its head size."""

    model_type = "cria_electra"
    head_dim: int | None = None
    consumer_bias: list[str] | None = None

    def __post_init__(self, **kwargs) -> None:
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)


class CriaElectraModel(CriaBertMixin, ElectraModel):
    """ElectraModel with layers of different widths."""

    config_class = CriaElectraConfig


class CriaElectraForCausalLM(CriaBertMixin, ElectraForCausalLM):
    """ElectraForCausalLM with layers of different widths."""

    config_class = CriaElectraConfig


class CriaElectraForMaskedLM(CriaBertMixin, ElectraForMaskedLM):
    """ElectraForMaskedLM with layers of different widths."""

    config_class = CriaElectraConfig


class CriaElectraForPreTraining(CriaBertMixin, ElectraForPreTraining):
    """ElectraForPreTraining with layers of different widths."""

    config_class = CriaElectraConfig


class CriaElectraForSequenceClassification(CriaBertMixin, ElectraForSequenceClassification):
    """ElectraForSequenceClassification with layers of different widths."""

    config_class = CriaElectraConfig


class CriaElectraForMultipleChoice(CriaBertMixin, ElectraForMultipleChoice):
    """ElectraForMultipleChoice with layers of different widths."""

    config_class = CriaElectraConfig


class CriaElectraForTokenClassification(CriaBertMixin, ElectraForTokenClassification):
    """ElectraForTokenClassification with layers of different widths."""

    config_class = CriaElectraConfig


class CriaElectraForQuestionAnswering(CriaBertMixin, ElectraForQuestionAnswering):
    """ElectraForQuestionAnswering with layers of different widths."""

    config_class = CriaElectraConfig
