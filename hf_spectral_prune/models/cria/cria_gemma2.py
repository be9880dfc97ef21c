"""Gemma 2 with its own FFN width and head counts in every layer.

Shipped beside the weights with `narrowing.py`, which makes the classes; both import torch, transformers and huggingface_hub only.
"""

import transformers

from .narrowing import CriaDecoderMixin, cria_family

CriaGemma2Config, cria = cria_family(__name__, CriaDecoderMixin, transformers.Gemma2Config)
CriaGemma2Model = cria(transformers.Gemma2Model)
CriaGemma2ForCausalLM = cria(transformers.Gemma2ForCausalLM)
CriaGemma2ForSequenceClassification = cria(transformers.Gemma2ForSequenceClassification)
CriaGemma2ForTokenClassification = cria(transformers.Gemma2ForTokenClassification)
