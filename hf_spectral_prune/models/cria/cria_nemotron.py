"""Nemotron with its own FFN width and head counts in every layer.

Shipped beside the weights with `narrowing.py`, which makes the classes; both import torch, transformers and huggingface_hub only.
"""

import transformers

from .narrowing import CriaDecoderMixin, Layer, cria_family, narrow_between, narrow_key_value_groups


class CriaNemotronMixin(CriaDecoderMixin):
    """Narrows Nemotron's layers, whose FFN is of two linear layers."""

    @staticmethod
    def narrow_layer(layer: Layer, config: transformers.PreTrainedConfig) -> None:
        """Narrows one layer to its own config's FFN width and head counts."""
        narrow_key_value_groups(layer, config)
        narrow_between(layer.mlp, config.intermediate_size, ["up_proj"], "down_proj")


CriaNemotronConfig, cria = cria_family(__name__, CriaNemotronMixin, transformers.NemotronConfig)
CriaNemotronModel = cria(transformers.NemotronModel)
CriaNemotronForCausalLM = cria(transformers.NemotronForCausalLM)
CriaNemotronForSequenceClassification = cria(transformers.NemotronForSequenceClassification)
CriaNemotronForTokenClassification = cria(transformers.NemotronForTokenClassification)
CriaNemotronForQuestionAnswering = cria(transformers.NemotronForQuestionAnswering)
