"""Llama with its own FFN width and head counts in every layer.

Shipped beside the weights with `narrowing.py`, which makes the classes; both import torch, transformers and huggingface_hub only.
"""

import transformers

from .narrowing import CriaDecoderMixin, cria_family

CriaLlamaConfig, cria = cria_family(__name__, CriaDecoderMixin, transformers.LlamaConfig)
CriaLlamaModel = cria(transformers.LlamaModel)
CriaLlamaForCausalLM = cria(transformers.LlamaForCausalLM)
CriaLlamaForSequenceClassification = cria(transformers.LlamaForSequenceClassification)
CriaLlamaForTokenClassification = cria(transformers.LlamaForTokenClassification)
CriaLlamaForQuestionAnswering = cria(transformers.LlamaForQuestionAnswering)
