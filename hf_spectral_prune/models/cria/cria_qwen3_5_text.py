"""The text model of Qwen3.5 with its own FFN width in every layer.

Shipped beside the weights with `narrowing.py`, which makes the classes; both import torch, transformers and huggingface_hub only.
"""

import transformers

from .narrowing import CriaGatedMixin, cria_family

CriaQwen3_5TextConfig, cria = cria_family(__name__, CriaGatedMixin, transformers.Qwen3_5TextConfig)
CriaQwen3_5TextModel = cria(transformers.Qwen3_5TextModel)
CriaQwen3_5TextForCausalLM = cria(transformers.Qwen3_5ForCausalLM)
CriaQwen3_5TextForSequenceClassification = cria(transformers.Qwen3_5TextForSequenceClassification)
