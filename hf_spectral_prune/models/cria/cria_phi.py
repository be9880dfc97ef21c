"""Phi-1, Phi-1.5 and Phi-2 with its own FFN width and head counts in every layer.

Shipped beside the weights with `narrowing.py`, which makes the classes; both import torch, transformers and huggingface_hub only.
"""

import transformers

from .narrowing import CriaDecoderMixin, Layer, cria_family, narrow_between, narrow_key_value_groups


class CriaPhiMixin(CriaDecoderMixin):
    """Narrows Phi's layers."""

    @staticmethod
    def narrow_layer(layer: Layer, config: transformers.PreTrainedConfig) -> None:
        """Narrows one layer to its own config's FFN width and head counts."""
        narrow_key_value_groups(layer, config, consumer="dense")
        narrow_between(layer.mlp, config.intermediate_size, ["fc1"], "fc2")


CriaPhiConfig, cria = cria_family(__name__, CriaPhiMixin, transformers.PhiConfig)
CriaPhiModel = cria(transformers.PhiModel)
CriaPhiForCausalLM = cria(transformers.PhiForCausalLM)
CriaPhiForSequenceClassification = cria(transformers.PhiForSequenceClassification)
CriaPhiForTokenClassification = cria(transformers.PhiForTokenClassification)
