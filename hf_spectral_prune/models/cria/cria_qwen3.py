"""Qwen3 with its own FFN width and head counts in every layer.

Shipped beside the weights with `narrowing.py`, which makes the classes; both import torch, transformers and huggingface_hub only.
"""

import transformers

from .narrowing import CriaDecoderMixin, cria_family

CriaQwen3Config, cria = cria_family(__name__, CriaDecoderMixin, transformers.Qwen3Config)
CriaQwen3Model = cria(transformers.Qwen3Model)
CriaQwen3ForCausalLM = cria(transformers.Qwen3ForCausalLM)
CriaQwen3ForSequenceClassification = cria(transformers.Qwen3ForSequenceClassification)
CriaQwen3ForTokenClassification = cria(transformers.Qwen3ForTokenClassification)
CriaQwen3ForQuestionAnswering = cria(transformers.Qwen3ForQuestionAnswering)
