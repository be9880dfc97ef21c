"""What the tests of differentiation share."""

from __future__ import annotations

import torch
from conftest import tiny_encoder
from transformers import MambaConfig, MambaForCausalLM

# Options of the criterion that make a measurement cheap.
CHEAP = {"num_probes": 1, "num_curvature_sequences": 2}


def unknown_family():
    """A model without a family table."""
    return MambaForCausalLM(MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=1))


def labelled(batches):
    """Batches with two classes."""
    return [batch | {"labels": torch.arange(len(batch["input_ids"])) % 2} for batch in batches]


def encoder(**fields):
    """A BERT with dropout."""
    return tiny_encoder(**{"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2} | fields)


def logged(trainer, name) -> dict[int, float]:
    """{step: value} of one figure in the trainer's history."""
    return {entry["step"]: entry[name] for entry in trainer.state.log_history if name in entry}
