"""GLM with its own FFN width and head counts in every layer.

Shipped beside the weights with `narrowing.py`, which makes the classes; both import torch, transformers and huggingface_hub only.
"""

import transformers

from .narrowing import CriaFusedDecoderMixin, cria_family

CriaGlmConfig, cria = cria_family(__name__, CriaFusedDecoderMixin, transformers.GlmConfig)
CriaGlmModel = cria(transformers.GlmModel)
CriaGlmForCausalLM = cria(transformers.GlmForCausalLM)
CriaGlmForSequenceClassification = cria(transformers.GlmForSequenceClassification)
CriaGlmForTokenClassification = cria(transformers.GlmForTokenClassification)
