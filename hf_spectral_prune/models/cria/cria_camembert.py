"""CamemBERT with its own FFN width and number of heads in every layer.

Shipped beside the weights with `narrowing.py`, which makes the classes; both import torch, transformers and huggingface_hub only.
"""

import transformers

from .narrowing import CriaBertMixin, cria_family

CriaCamembertConfig, cria = cria_family(__name__, CriaBertMixin, transformers.CamembertConfig)
CriaCamembertModel = cria(transformers.CamembertModel)
CriaCamembertForCausalLM = cria(transformers.CamembertForCausalLM)
CriaCamembertForMaskedLM = cria(transformers.CamembertForMaskedLM)
CriaCamembertForSequenceClassification = cria(transformers.CamembertForSequenceClassification)
CriaCamembertForMultipleChoice = cria(transformers.CamembertForMultipleChoice)
CriaCamembertForTokenClassification = cria(transformers.CamembertForTokenClassification)
CriaCamembertForQuestionAnswering = cria(transformers.CamembertForQuestionAnswering)
