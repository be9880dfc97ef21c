"""A small Trainer, and a callback that keeps what it logs."""

from __future__ import annotations

from conftest import random_batch
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_spectral_prune.data.rows import causal_collator


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


class Logger(TrainerCallback):
    """Keeps (step, figures) of every log."""

    def __init__(self) -> None:
        self.logs: list[tuple[int, dict]] = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append((state.global_step, dict(logs)))
