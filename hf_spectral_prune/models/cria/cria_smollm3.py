"""SmolLM3 with its own FFN width and head counts in every layer.

Shipped beside the weights with `narrowing.py`, which makes the classes; both import torch, transformers and huggingface_hub only.
"""

import transformers

from .narrowing import CriaDecoderMixin, cria_family

CriaSmolLM3Config, cria = cria_family(__name__, CriaDecoderMixin, transformers.SmolLM3Config)
CriaSmolLM3Model = cria(transformers.SmolLM3Model)
CriaSmolLM3ForCausalLM = cria(transformers.SmolLM3ForCausalLM)
CriaSmolLM3ForSequenceClassification = cria(transformers.SmolLM3ForSequenceClassification)
CriaSmolLM3ForTokenClassification = cria(transformers.SmolLM3ForTokenClassification)
CriaSmolLM3ForQuestionAnswering = cria(transformers.SmolLM3ForQuestionAnswering)
