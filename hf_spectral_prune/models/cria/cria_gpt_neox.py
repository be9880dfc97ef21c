"""GPT-NeoX and Pythia with its own FFN width in every layer.

Shipped beside the weights with `narrowing.py`, which makes the classes; both import torch, transformers and huggingface_hub only.
"""

import transformers

from .narrowing import CriaMixin, Layer, cria_family, narrow_between


class CriaGPTNeoXMixin(CriaMixin):
    """Narrows GPT-NeoX's layers."""

    @staticmethod
    def narrow_layer(layer: Layer, config: transformers.PreTrainedConfig) -> None:
        """Narrows one layer to its own config's FFN width."""
        narrow_between(layer.mlp, config.intermediate_size, ["dense_h_to_4h"], "dense_4h_to_h")


CriaGPTNeoXConfig, cria = cria_family(__name__, CriaGPTNeoXMixin, transformers.GPTNeoXConfig)
CriaGPTNeoXModel = cria(transformers.GPTNeoXModel)
CriaGPTNeoXForCausalLM = cria(transformers.GPTNeoXForCausalLM)
CriaGPTNeoXForSequenceClassification = cria(transformers.GPTNeoXForSequenceClassification)
CriaGPTNeoXForTokenClassification = cria(transformers.GPTNeoXForTokenClassification)
CriaGPTNeoXForQuestionAnswering = cria(transformers.GPTNeoXForQuestionAnswering)
