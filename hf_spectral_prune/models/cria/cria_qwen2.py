"""Qwen2 with its own FFN width and head counts in every layer.

Shipped beside the weights with `narrowing.py`, which makes the classes; both import torch, transformers and huggingface_hub only.
"""

import transformers

from .narrowing import CriaDecoderMixin, cria_family

CriaQwen2Config, cria = cria_family(__name__, CriaDecoderMixin, transformers.Qwen2Config)
CriaQwen2Model = cria(transformers.Qwen2Model)
CriaQwen2ForCausalLM = cria(transformers.Qwen2ForCausalLM)
CriaQwen2ForSequenceClassification = cria(transformers.Qwen2ForSequenceClassification)
CriaQwen2ForTokenClassification = cria(transformers.Qwen2ForTokenClassification)
CriaQwen2ForQuestionAnswering = cria(transformers.Qwen2ForQuestionAnswering)
