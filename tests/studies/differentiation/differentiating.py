"""A Trainer for tiny models, as the tests of differentiation use it."""

from __future__ import annotations

import torch
from conftest import random_batch, tiny_encoder
from transformers import MambaConfig, MambaForCausalLM, Trainer, TrainingArguments

from hf_spectral_prune.data.rows import causal_collator

# Options of the criterion that make a measurement cheap.
CHEAP = {"num_probes": 1, "num_curvature_sequences": 2}


def make_trainer(model, folder, callbacks=(), cls=Trainer, rows=None, options=None, **fields) -> Trainer:
    """6 steps of 4 rows; `fields` are TrainingArguments, `options` arguments of a Trainer class of one's own."""
    defaults = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    causal = "ForCausalLM" in type(model).__name__
    if rows is None:
        rows = [{"input_ids": ids} | ({} if causal else {"label": int(ids[0]) % 2}) for ids in random_batch(32)["input_ids"]]
    return cls(
        model=model,
        args=TrainingArguments(**defaults | fields),
        train_dataset=rows,
        eval_dataset=rows[:8],
        callbacks=list(callbacks),
        **({"data_collator": causal_collator()} if causal else {}) | (options or {}),
    )


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
