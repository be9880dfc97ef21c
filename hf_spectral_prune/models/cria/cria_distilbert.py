"""DistilBERT with its own FFN width and number of heads in every layer.

Shipped beside the weights with `narrowing.py`, which makes the classes; both import torch, transformers and huggingface_hub only.
"""

import transformers

from .narrowing import CriaEncoderMixin, Layer, cria_family, first, narrow_linear, narrow_rows


class CriaDistilBertMixin(CriaEncoderMixin):
    """Narrows DistilBERT's layers."""

    layers_path = "transformer.layer"

    @staticmethod
    def narrow_layer(layer: Layer, config: transformers.PreTrainedConfig) -> None:
        """Narrows one layer to its own config's FFN width and number of heads."""
        attention, ffn = layer.attention, layer.ffn
        attention.n_heads = config.n_heads
        width = config.n_heads * config.head_dim
        narrow_rows((attention.q_lin, attention.k_lin, attention.v_lin), width)
        narrow_linear(attention.out_lin, columns=first(width))
        narrow_rows([ffn.lin1], config.hidden_dim)
        narrow_linear(ffn.lin2, columns=first(config.hidden_dim))


CriaDistilBertConfig, cria = cria_family(__name__, CriaDistilBertMixin, transformers.DistilBertConfig)
CriaDistilBertModel = cria(transformers.DistilBertModel)
CriaDistilBertForMaskedLM = cria(transformers.DistilBertForMaskedLM)
CriaDistilBertForSequenceClassification = cria(transformers.DistilBertForSequenceClassification)
CriaDistilBertForMultipleChoice = cria(transformers.DistilBertForMultipleChoice)
CriaDistilBertForTokenClassification = cria(transformers.DistilBertForTokenClassification)
CriaDistilBertForQuestionAnswering = cria(transformers.DistilBertForQuestionAnswering)
