"""ModernBERT with its own FFN width and number of heads in every layer.

Shipped beside the weights with `narrowing.py`, which makes the classes; both import torch, transformers and huggingface_hub only.
"""

import transformers

from .narrowing import CriaEncoderMixin, Layer, cria_family, first, narrow_linear, narrow_rows


class CriaModernBertMixin(CriaEncoderMixin):
    """Narrows ModernBERT's layers, whose projections are fused."""

    @staticmethod
    def narrow_layer(layer: Layer, config: transformers.PreTrainedConfig) -> None:
        """Narrows one layer to its own config's FFN width and number of heads."""
        width = config.num_attention_heads * config.head_dim
        narrow_rows([layer.attn.Wqkv], width, num_blocks=3)  # rows: queries, keys, values
        narrow_linear(layer.attn.Wo, columns=first(width))
        narrow_rows([layer.mlp.Wi], config.intermediate_size, num_blocks=2)  # rows: activated half, other half
        narrow_linear(layer.mlp.Wo, columns=first(config.intermediate_size))


CriaModernBertConfig, cria = cria_family(__name__, CriaModernBertMixin, transformers.ModernBertConfig)
CriaModernBertModel = cria(transformers.ModernBertModel)
CriaModernBertForMaskedLM = cria(transformers.ModernBertForMaskedLM)
CriaModernBertForSequenceClassification = cria(transformers.ModernBertForSequenceClassification)
CriaModernBertForMultipleChoice = cria(transformers.ModernBertForMultipleChoice)
CriaModernBertForTokenClassification = cria(transformers.ModernBertForTokenClassification)
CriaModernBertForQuestionAnswering = cria(transformers.ModernBertForQuestionAnswering)
