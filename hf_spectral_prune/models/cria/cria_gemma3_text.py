"""The text model of Gemma 3 with its own FFN width and head counts in every layer.

Shipped beside the weights with `narrowing.py`, which makes the classes; both import torch, transformers and huggingface_hub only.
"""

import transformers

from .narrowing import CriaDecoderMixin, cria_family

CriaGemma3TextConfig, cria = cria_family(__name__, CriaDecoderMixin, transformers.Gemma3TextConfig)
CriaGemma3TextModel = cria(transformers.Gemma3TextModel)
CriaGemma3TextForCausalLM = cria(transformers.Gemma3ForCausalLM)
CriaGemma3TextForSequenceClassification = cria(transformers.Gemma3TextForSequenceClassification)
