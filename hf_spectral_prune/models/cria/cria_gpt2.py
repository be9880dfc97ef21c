"""GPT-2 with its own FFN width in every layer.

Shipped beside the weights with `narrowing.py`, which makes the classes; both import torch, transformers and huggingface_hub only.
"""

import transformers

from .narrowing import CriaMixin, Layer, cria_family, narrow_between


class CriaGPT2Mixin(CriaMixin):
    """Narrows GPT-2's layers."""

    layers_path = "h"

    @staticmethod
    def narrow_layer(layer: Layer, config: transformers.PreTrainedConfig) -> None:
        """Narrows one layer to its own config's FFN width."""
        narrow_between(layer.mlp, config.n_inner, ["c_fc"], "c_proj")


CriaGPT2Config, cria = cria_family(__name__, CriaGPT2Mixin, transformers.GPT2Config)
CriaGPT2Model = cria(transformers.GPT2Model)
CriaGPT2LMHeadModel = cria(transformers.GPT2LMHeadModel)
CriaGPT2ForSequenceClassification = cria(transformers.GPT2ForSequenceClassification)
CriaGPT2ForTokenClassification = cria(transformers.GPT2ForTokenClassification)
CriaGPT2ForQuestionAnswering = cria(transformers.GPT2ForQuestionAnswering)
