"""OLMo 3 with its own FFN width in every layer.

This file is shipped beside the weights, so it imports torch, transformers and huggingface_hub only.
"""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import (
    Olmo3Config,
    Olmo3ForCausalLM,
    Olmo3ForSequenceClassification,
    Olmo3Model,
)

from .narrowing import CriaGatedMixin


@strict
class CriaOlmo3Config(Olmo3Config):
    """Olmo3Config whose layers may differ in FFN width (`per_layer_config`)."""

    model_type = "cria_olmo3"
    consumer_bias: list[str] | None = None


class CriaOlmo3Model(CriaGatedMixin, Olmo3Model):
    """Olmo3Model with layers of different widths."""

    config_class = CriaOlmo3Config


class CriaOlmo3ForCausalLM(CriaGatedMixin, Olmo3ForCausalLM):
    """Olmo3ForCausalLM with layers of different widths."""

    config_class = CriaOlmo3Config


class CriaOlmo3ForSequenceClassification(CriaGatedMixin, Olmo3ForSequenceClassification):
    """Olmo3ForSequenceClassification with layers of different widths."""

    config_class = CriaOlmo3Config
