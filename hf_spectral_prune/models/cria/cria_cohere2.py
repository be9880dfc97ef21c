"""Cohere's Command R7B and Command A with its own FFN width and head counts in every layer.

Shipped beside the weights with `narrowing.py`, which makes the classes; both import torch, transformers and huggingface_hub only.
"""

import transformers

from .narrowing import CriaDecoderMixin, cria_family

CriaCohere2Config, cria = cria_family(__name__, CriaDecoderMixin, transformers.Cohere2Config)
CriaCohere2Model = cria(transformers.Cohere2Model)
CriaCohere2ForCausalLM = cria(transformers.Cohere2ForCausalLM)
