"""Mistral with its own FFN width and head counts in every layer.

Shipped beside the weights with `narrowing.py`, which makes the classes; both import torch, transformers and huggingface_hub only.
"""

import transformers

from .narrowing import CriaDecoderMixin, cria_family

CriaMistralConfig, cria = cria_family(__name__, CriaDecoderMixin, transformers.MistralConfig)
CriaMistralModel = cria(transformers.MistralModel)
CriaMistralForCausalLM = cria(transformers.MistralForCausalLM)
CriaMistralForSequenceClassification = cria(transformers.MistralForSequenceClassification)
CriaMistralForTokenClassification = cria(transformers.MistralForTokenClassification)
CriaMistralForQuestionAnswering = cria(transformers.MistralForQuestionAnswering)
