"""StableLM with its own FFN width and head counts in every layer.

Shipped beside the weights with `narrowing.py`, which makes the classes; both import torch, transformers and huggingface_hub only.
"""

import transformers

from .narrowing import CriaEncoderMixin, Layer, cria_family, narrow_decoder_layer


class CriaStableLmMixin(CriaEncoderMixin):
    """Narrows StableLM's layers, whose stock attention takes its head size from the number of heads."""

    @staticmethod
    def narrow_layer(layer: Layer, config: transformers.PreTrainedConfig) -> None:
        """Narrows one layer to its own config's FFN width and head counts."""
        attention = layer.self_attn
        attention.num_heads, attention.num_key_value_heads = config.num_attention_heads, config.num_key_value_heads
        narrow_decoder_layer(layer, config)


CriaStableLmConfig, cria = cria_family(__name__, CriaStableLmMixin, transformers.StableLmConfig)
CriaStableLmModel = cria(transformers.StableLmModel)
CriaStableLmForCausalLM = cria(transformers.StableLmForCausalLM)
CriaStableLmForSequenceClassification = cria(transformers.StableLmForSequenceClassification)
CriaStableLmForTokenClassification = cria(transformers.StableLmForTokenClassification)
