"""Gemma with its own FFN width and head counts in every layer.

Shipped beside the weights with `narrowing.py`, which makes the classes; both import torch, transformers and huggingface_hub only.
"""

import transformers

from .narrowing import CriaDecoderMixin, cria_family

CriaGemmaConfig, cria = cria_family(__name__, CriaDecoderMixin, transformers.GemmaConfig)
CriaGemmaModel = cria(transformers.GemmaModel)
CriaGemmaForCausalLM = cria(transformers.GemmaForCausalLM)
CriaGemmaForSequenceClassification = cria(transformers.GemmaForSequenceClassification)
CriaGemmaForTokenClassification = cria(transformers.GemmaForTokenClassification)
