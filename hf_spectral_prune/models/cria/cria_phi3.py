"""Phi-3 with its own FFN width in every layer.

Shipped beside the weights with `narrowing.py`, which makes the classes; both import torch, transformers and huggingface_hub only.
"""

import transformers

from .narrowing import CriaMixin, Layer, cria_family, first, narrow_linear, narrow_rows


class CriaPhi3Mixin(CriaMixin):
    """Narrows Phi-3's layers, whose FFN projections are fused."""

    @staticmethod
    def narrow_layer(layer: Layer, config: transformers.PreTrainedConfig) -> None:
        """Narrows one layer to its own config's FFN width."""
        narrow_rows([layer.mlp.gate_up_proj], config.intermediate_size, num_blocks=2)  # rows: activated half, other half
        narrow_linear(layer.mlp.down_proj, columns=first(config.intermediate_size))


CriaPhi3Config, cria = cria_family(__name__, CriaPhi3Mixin, transformers.Phi3Config)
CriaPhi3Model = cria(transformers.Phi3Model)
CriaPhi3ForCausalLM = cria(transformers.Phi3ForCausalLM)
CriaPhi3ForSequenceClassification = cria(transformers.Phi3ForSequenceClassification)
CriaPhi3ForTokenClassification = cria(transformers.Phi3ForTokenClassification)
