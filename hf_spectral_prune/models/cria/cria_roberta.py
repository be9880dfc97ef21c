"""RoBERTa with its own FFN width and number of heads in every layer.

Shipped beside the weights with `narrowing.py`, which makes the classes; both import torch, transformers and huggingface_hub only.
"""

import transformers

from .narrowing import CriaBertMixin, cria_family

CriaRobertaConfig, cria = cria_family(__name__, CriaBertMixin, transformers.RobertaConfig)
CriaRobertaModel = cria(transformers.RobertaModel)
CriaRobertaForCausalLM = cria(transformers.RobertaForCausalLM)
CriaRobertaForMaskedLM = cria(transformers.RobertaForMaskedLM)
CriaRobertaForSequenceClassification = cria(transformers.RobertaForSequenceClassification)
CriaRobertaForMultipleChoice = cria(transformers.RobertaForMultipleChoice)
CriaRobertaForTokenClassification = cria(transformers.RobertaForTokenClassification)
CriaRobertaForQuestionAnswering = cria(transformers.RobertaForQuestionAnswering)
