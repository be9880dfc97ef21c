"""Falcon with its own FFN width in every layer.

Shipped beside the weights with `narrowing.py`, which makes the classes; both import torch, transformers and huggingface_hub only.
"""

import transformers

from .narrowing import CriaMixin, Layer, cria_family, narrow_between


class CriaFalconMixin(CriaMixin):
    """Narrows Falcon's layers."""

    layers_path = "h"

    @staticmethod
    def narrow_layer(layer: Layer, config: transformers.PreTrainedConfig) -> None:
        """Narrows one layer to its own config's FFN width."""
        narrow_between(layer.mlp, config.ffn_hidden_size, ["dense_h_to_4h"], "dense_4h_to_h")


CriaFalconConfig, cria = cria_family(__name__, CriaFalconMixin, transformers.FalconConfig)
CriaFalconModel = cria(transformers.FalconModel)
CriaFalconForCausalLM = cria(transformers.FalconForCausalLM)
CriaFalconForSequenceClassification = cria(transformers.FalconForSequenceClassification)
CriaFalconForTokenClassification = cria(transformers.FalconForTokenClassification)
CriaFalconForQuestionAnswering = cria(transformers.FalconForQuestionAnswering)
