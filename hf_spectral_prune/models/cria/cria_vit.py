"""Vision Transformer with its own FFN width and number of heads in every layer.

This file is shipped beside the weights, so it imports torch, transformers and huggingface_hub only.
"""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import ViTConfig, ViTForImageClassification, ViTForMaskedImageModeling, ViTModel

from .narrowing import CriaEncoderMixin, first, narrow_linear, narrow_rows


@strict
class CriaViTConfig(ViTConfig):
    """ViTConfig whose layers may differ (`per_layer_config`) and which states its head size."""

    model_type = "cria_vit"
    head_dim: int | None = None
    consumer_bias: list[str] | None = None

    def __post_init__(self, **kwargs) -> None:
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)


class CriaViTMixin(CriaEncoderMixin):
    """What the task classes share."""

    @staticmethod
    def narrow_layer(layer: Any, config: Any) -> None:
        """Narrows one layer to its own config's FFN width and number of heads."""
        attention, mlp = layer.attention, layer.mlp
        attention.num_attention_heads = config.num_attention_heads
        width = config.num_attention_heads * config.head_dim
        narrow_rows((attention.q_proj, attention.k_proj, attention.v_proj), width)
        narrow_linear(attention.o_proj, columns=first(width))
        narrow_rows([mlp.fc1], config.intermediate_size)
        narrow_linear(mlp.fc2, columns=first(config.intermediate_size))


class CriaViTModel(CriaViTMixin, ViTModel):
    """ViTModel with layers of different widths."""

    config_class = CriaViTConfig


class CriaViTForImageClassification(CriaViTMixin, ViTForImageClassification):
    """ViTForImageClassification with layers of different widths."""

    config_class = CriaViTConfig


class CriaViTForMaskedImageModeling(CriaViTMixin, ViTForMaskedImageModeling):
    """ViTForMaskedImageModeling with layers of different widths."""

    config_class = CriaViTConfig
