"""OLMo 3 with its own FFN width in every layer.

Shipped beside the weights with `narrowing.py`, which makes the classes; both import torch, transformers and huggingface_hub only.
"""

import transformers

from .narrowing import CriaGatedMixin, cria_family

CriaOlmo3Config, cria = cria_family(__name__, CriaGatedMixin, transformers.Olmo3Config)
CriaOlmo3Model = cria(transformers.Olmo3Model)
CriaOlmo3ForCausalLM = cria(transformers.Olmo3ForCausalLM)
CriaOlmo3ForSequenceClassification = cria(transformers.Olmo3ForSequenceClassification)
