"""ELECTRA with its own FFN width and number of heads in every layer.

Shipped beside the weights with `narrowing.py`, which makes the classes; both import torch, transformers and huggingface_hub only.
"""

import transformers

from .narrowing import CriaBertMixin, cria_family

CriaElectraConfig, cria = cria_family(__name__, CriaBertMixin, transformers.ElectraConfig)
CriaElectraModel = cria(transformers.ElectraModel)
CriaElectraForCausalLM = cria(transformers.ElectraForCausalLM)
CriaElectraForMaskedLM = cria(transformers.ElectraForMaskedLM)
CriaElectraForPreTraining = cria(transformers.ElectraForPreTraining)
CriaElectraForSequenceClassification = cria(transformers.ElectraForSequenceClassification)
CriaElectraForMultipleChoice = cria(transformers.ElectraForMultipleChoice)
CriaElectraForTokenClassification = cria(transformers.ElectraForTokenClassification)
CriaElectraForQuestionAnswering = cria(transformers.ElectraForQuestionAnswering)
