"""GLM-4 with its own FFN width and head counts in every layer.

Shipped beside the weights with `narrowing.py`, which makes the classes; both import torch, transformers and huggingface_hub only.
"""

import transformers

from .narrowing import CriaFusedDecoderMixin, cria_family

CriaGlm4Config, cria = cria_family(__name__, CriaFusedDecoderMixin, transformers.Glm4Config)
CriaGlm4Model = cria(transformers.Glm4Model)
CriaGlm4ForCausalLM = cria(transformers.Glm4ForCausalLM)
CriaGlm4ForSequenceClassification = cria(transformers.Glm4ForSequenceClassification)
CriaGlm4ForTokenClassification = cria(transformers.Glm4ForTokenClassification)
