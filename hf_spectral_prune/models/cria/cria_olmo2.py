"""OLMo 2 with its own FFN width in every layer.

This file is shipped beside the weights, so it imports torch, transformers and huggingface_hub only.
"""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import (
    Olmo2Config,
    Olmo2ForCausalLM,
    Olmo2ForSequenceClassification,
    Olmo2Model,
)

from .narrowing import CriaGatedMixin


@strict
class CriaOlmo2Config(Olmo2Config):
    """Olmo2Config whose layers may differ in FFN width (`per_layer_config`)."""

    model_type = "cria_olmo2"
    consumer_bias: list[str] | None = None


class CriaOlmo2Model(CriaGatedMixin, Olmo2Model):
    """Olmo2Model with layers of different widths."""

    config_class = CriaOlmo2Config


class CriaOlmo2ForCausalLM(CriaGatedMixin, Olmo2ForCausalLM):
    """Olmo2ForCausalLM with layers of different widths."""

    config_class = CriaOlmo2Config


class CriaOlmo2ForSequenceClassification(CriaGatedMixin, Olmo2ForSequenceClassification):
    """Olmo2ForSequenceClassification with layers of different widths."""

    config_class = CriaOlmo2Config
