"""Granite with its own FFN width and head counts in every layer.

This file is shipped beside the weights, so it imports torch, transformers and huggingface_hub only.
"""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import (
    GraniteConfig,
    GraniteForCausalLM,
    GraniteModel,
)

from .narrowing import CriaDecoderMixin


@strict
class CriaGraniteConfig(GraniteConfig):
    """GraniteConfig whose layers may differ (`per_layer_config`) and whose head count is free."""

    model_type = "cria_granite"
    consumer_bias: list[str] | None = None


class CriaGraniteModel(CriaDecoderMixin, GraniteModel):
    """GraniteModel with layers of different widths."""

    config_class = CriaGraniteConfig


class CriaGraniteForCausalLM(CriaDecoderMixin, GraniteForCausalLM):
    """GraniteForCausalLM with layers of different widths."""

    config_class = CriaGraniteConfig
