"""StarCoder2 with its own FFN width and head counts in every layer.

Shipped beside the weights with `narrowing.py`, which makes the classes; both import torch, transformers and huggingface_hub only.
"""

import transformers

from .narrowing import CriaDecoderMixin, Layer, cria_family, narrow_between, narrow_key_value_groups


class CriaStarcoder2Mixin(CriaDecoderMixin):
    """Narrows StarCoder2's layers, whose FFN is of two linear layers."""

    @staticmethod
    def narrow_layer(layer: Layer, config: transformers.PreTrainedConfig) -> None:
        """Narrows one layer to its own config's FFN width and head counts."""
        narrow_key_value_groups(layer, config)
        narrow_between(layer.mlp, config.intermediate_size, ["c_fc"], "c_proj")


CriaStarcoder2Config, cria = cria_family(__name__, CriaStarcoder2Mixin, transformers.Starcoder2Config)
CriaStarcoder2Model = cria(transformers.Starcoder2Model)
CriaStarcoder2ForCausalLM = cria(transformers.Starcoder2ForCausalLM)
CriaStarcoder2ForSequenceClassification = cria(transformers.Starcoder2ForSequenceClassification)
CriaStarcoder2ForTokenClassification = cria(transformers.Starcoder2ForTokenClassification)
