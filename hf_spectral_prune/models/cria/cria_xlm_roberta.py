"""XLM-RoBERTa with its own FFN width and number of heads in every layer.

Shipped beside the weights with `narrowing.py`, which makes the classes; both import torch, transformers and huggingface_hub only.
"""

import transformers

from .narrowing import CriaBertMixin, cria_family

CriaXLMRobertaConfig, cria = cria_family(__name__, CriaBertMixin, transformers.XLMRobertaConfig)
CriaXLMRobertaModel = cria(transformers.XLMRobertaModel)
CriaXLMRobertaForCausalLM = cria(transformers.XLMRobertaForCausalLM)
CriaXLMRobertaForMaskedLM = cria(transformers.XLMRobertaForMaskedLM)
CriaXLMRobertaForSequenceClassification = cria(transformers.XLMRobertaForSequenceClassification)
CriaXLMRobertaForMultipleChoice = cria(transformers.XLMRobertaForMultipleChoice)
CriaXLMRobertaForTokenClassification = cria(transformers.XLMRobertaForTokenClassification)
CriaXLMRobertaForQuestionAnswering = cria(transformers.XLMRobertaForQuestionAnswering)
