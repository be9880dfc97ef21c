"""DINOv2 with its own FFN width and number of heads in every layer.

Shipped beside the weights with `narrowing.py`, which makes the classes; both import torch, transformers and huggingface_hub only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import transformers

from .narrowing import (
    CriaEncoderConfigMixin,
    CriaEncoderMixin,
    Layer,
    cria_family,
    first,
    narrow_between,
    narrow_linear,
    narrow_rows,
)


@dataclass(kw_only=True, repr=False)  # a width that may differ by layer is not to be read without one
class CriaDinov2ConfigMixin(CriaEncoderConfigMixin):
    """A config that states the width of the FFN, which follows from the hidden size in the stock one."""

    intermediate_size: int | None = None

    def __post_init__(self: Any, **kwargs: object) -> None:
        if self.intermediate_size is None:
            width = int(self.hidden_size * self.mlp_ratio)
            self.intermediate_size = (int(width * 2 / 3) + 7) // 8 * 8 if self.use_swiglu_ffn else width
        super().__post_init__(**kwargs)


class CriaDinov2Mixin(CriaEncoderMixin):
    """Narrows DINOv2's layers."""

    config_mixin = CriaDinov2ConfigMixin
    layers_path = "encoder.layer"

    @staticmethod
    def narrow_layer(layer: Layer, config: transformers.PreTrainedConfig) -> None:
        """Narrows one layer to its own config's FFN width and number of heads."""
        attention = layer.attention
        attention.num_attention_heads = config.num_attention_heads
        width = config.num_attention_heads * config.head_dim
        narrow_rows((attention.q_proj, attention.k_proj, attention.v_proj), width)
        narrow_linear(attention.o_proj, columns=first(width))
        if config.use_swiglu_ffn:
            narrow_between(layer.mlp, config.intermediate_size, ["gate_proj", "up_proj"], "down_proj")
        else:
            narrow_between(layer.mlp, config.intermediate_size, ["fc1"], "fc2")


CriaDinov2Config, cria = cria_family(__name__, CriaDinov2Mixin, transformers.Dinov2Config)
CriaDinov2Model = cria(transformers.Dinov2Model)
CriaDinov2ForImageClassification = cria(transformers.Dinov2ForImageClassification)
