"""Vision Transformer with its own FFN width and number of heads in every layer.

Shipped beside the weights with `narrowing.py`, which makes the classes; both import torch, transformers and huggingface_hub only.
"""

import transformers

from .narrowing import CriaEncoderMixin, Layer, cria_family, first, narrow_linear, narrow_rows


class CriaViTMixin(CriaEncoderMixin):
    """What the task classes share."""

    @staticmethod
    def narrow_layer(layer: Layer, config: transformers.PreTrainedConfig) -> None:
        """Narrows one layer to its own config's FFN width and number of heads."""
        attention, mlp = layer.attention, layer.mlp
        attention.num_attention_heads = config.num_attention_heads
        width = config.num_attention_heads * config.head_dim
        narrow_rows((attention.q_proj, attention.k_proj, attention.v_proj), width)
        narrow_linear(attention.o_proj, columns=first(width))
        narrow_rows([mlp.fc1], config.intermediate_size)
        narrow_linear(mlp.fc2, columns=first(config.intermediate_size))


CriaViTConfig, cria = cria_family(__name__, CriaViTMixin, transformers.ViTConfig)
CriaViTModel = cria(transformers.ViTModel)
CriaViTForImageClassification = cria(transformers.ViTForImageClassification)
CriaViTForMaskedImageModeling = cria(transformers.ViTForMaskedImageModeling)
