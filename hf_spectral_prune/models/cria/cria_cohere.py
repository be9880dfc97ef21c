"""Cohere's Command R with its own FFN width and head counts in every layer.

Shipped beside the weights with `narrowing.py`, which makes the classes; both import torch, transformers and huggingface_hub only.
"""

import transformers

from .narrowing import CriaDecoderMixin, cria_family

CriaCohereConfig, cria = cria_family(__name__, CriaDecoderMixin, transformers.CohereConfig)
CriaCohereModel = cria(transformers.CohereModel)
CriaCohereForCausalLM = cria(transformers.CohereForCausalLM)
