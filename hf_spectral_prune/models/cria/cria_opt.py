"""OPT with its own FFN width and number of heads in every layer.

Shipped beside the weights with `narrowing.py`, which makes the classes; both import torch, transformers and huggingface_hub only.
"""

import transformers

from .narrowing import CriaEncoderMixin, Layer, cria_family, narrow_between


class CriaOPTMixin(CriaEncoderMixin):
    """Narrows OPT's layers."""

    layers_path = "decoder.layers"

    @staticmethod
    def narrow_layer(layer: Layer, config: transformers.PreTrainedConfig) -> None:
        """Narrows one layer to its own config's FFN width and head counts."""
        attention = layer.self_attn
        attention.num_heads = config.num_attention_heads
        narrow_between(attention, config.num_attention_heads * config.head_dim, ("q_proj", "k_proj", "v_proj"), "out_proj")
        narrow_between(layer, config.ffn_dim, ["fc1"], "fc2")


CriaOPTConfig, cria = cria_family(__name__, CriaOPTMixin, transformers.OPTConfig)
CriaOPTModel = cria(transformers.OPTModel)
CriaOPTForCausalLM = cria(transformers.OPTForCausalLM)
CriaOPTForSequenceClassification = cria(transformers.OPTForSequenceClassification)
CriaOPTForQuestionAnswering = cria(transformers.OPTForQuestionAnswering)
