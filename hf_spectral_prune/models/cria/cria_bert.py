"""BERT with its own FFN width and number of heads in every layer.

Shipped beside the weights with `narrowing.py`, which makes the classes; both import torch, transformers and huggingface_hub only.
"""

import transformers

from .narrowing import CriaBertMixin, cria_family

CriaBertConfig, cria = cria_family(__name__, CriaBertMixin, transformers.BertConfig)
CriaBertModel = cria(transformers.BertModel)
CriaBertForPreTraining = cria(transformers.BertForPreTraining)
CriaBertLMHeadModel = cria(transformers.BertLMHeadModel)
CriaBertForMaskedLM = cria(transformers.BertForMaskedLM)
CriaBertForNextSentencePrediction = cria(transformers.BertForNextSentencePrediction)
CriaBertForSequenceClassification = cria(transformers.BertForSequenceClassification)
CriaBertForMultipleChoice = cria(transformers.BertForMultipleChoice)
CriaBertForTokenClassification = cria(transformers.BertForTokenClassification)
CriaBertForQuestionAnswering = cria(transformers.BertForQuestionAnswering)
