"""BLOOM with its own FFN width in every layer.

Shipped beside the weights with `narrowing.py`, which makes the classes; both import torch, transformers and huggingface_hub only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import transformers

from .narrowing import CriaConfigMixin, CriaMixin, Layer, cria_family, narrow_between


@dataclass(kw_only=True, repr=False)  # a width that may differ by layer is not to be read without one
class CriaBloomConfigMixin(CriaConfigMixin):
    """A config that states the width of the FFN, which is four times the hidden size in every stock BLOOM."""

    intermediate_size: int | None = None

    def __post_init__(self: Any, **kwargs: object) -> None:
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        super().__post_init__(**kwargs)  # type: ignore[misc]


class CriaBloomMixin(CriaMixin):
    """Narrows BLOOM's layers."""

    config_mixin = CriaBloomConfigMixin
    layers_path = "h"

    @staticmethod
    def narrow_layer(layer: Layer, config: transformers.PreTrainedConfig) -> None:
        """Narrows one layer to its own config's FFN width."""
        narrow_between(layer.mlp, config.intermediate_size, ["dense_h_to_4h"], "dense_4h_to_h")


CriaBloomConfig, cria = cria_family(__name__, CriaBloomMixin, transformers.BloomConfig)
CriaBloomModel = cria(transformers.BloomModel)
CriaBloomForCausalLM = cria(transformers.BloomForCausalLM)
CriaBloomForSequenceClassification = cria(transformers.BloomForSequenceClassification)
CriaBloomForTokenClassification = cria(transformers.BloomForTokenClassification)
CriaBloomForQuestionAnswering = cria(transformers.BloomForQuestionAnswering)
