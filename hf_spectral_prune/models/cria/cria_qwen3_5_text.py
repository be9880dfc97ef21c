"""The text model of Qwen3.5 with its own FFN width in every layer.

This file is shipped beside the weights, so it imports torch, transformers and huggingface_hub only.
"""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import (
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
    Qwen3_5TextForSequenceClassification,
    Qwen3_5TextModel,
)

from .narrowing import CriaGatedMixin


@strict
class CriaQwen3_5TextConfig(Qwen3_5TextConfig):
    """Qwen3_5TextConfig whose layers may differ in FFN width (`per_layer_config`)."""

    model_type = "cria_qwen3_5_text"
    consumer_bias: list[str] | None = None


class CriaQwen3_5TextModel(CriaGatedMixin, Qwen3_5TextModel):
    """Qwen3_5TextModel with layers of different widths."""

    config_class = CriaQwen3_5TextConfig


class CriaQwen3_5TextForCausalLM(CriaGatedMixin, Qwen3_5ForCausalLM):
    """Qwen3_5ForCausalLM with layers of different widths."""

    config_class = CriaQwen3_5TextConfig


class CriaQwen3_5TextForSequenceClassification(CriaGatedMixin, Qwen3_5TextForSequenceClassification):
    """Qwen3_5TextForSequenceClassification with layers of different widths."""

    config_class = CriaQwen3_5TextConfig
