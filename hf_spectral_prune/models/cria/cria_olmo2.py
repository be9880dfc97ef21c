"""OLMo 2 with its own FFN width in every layer.

Shipped beside the weights with `narrowing.py`, which makes the classes; both import torch, transformers and huggingface_hub only.
"""

import transformers

from .narrowing import CriaGatedMixin, cria_family

CriaOlmo2Config, cria = cria_family(__name__, CriaGatedMixin, transformers.Olmo2Config)
CriaOlmo2Model = cria(transformers.Olmo2Model)
CriaOlmo2ForCausalLM = cria(transformers.Olmo2ForCausalLM)
CriaOlmo2ForSequenceClassification = cria(transformers.Olmo2ForSequenceClassification)
