"""Trains and prunes a tiny model on every process of a data-parallel run; each writes what it ended with."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch
from conftest import random_batch, tiny_model
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from hf_spectral_prune import ScoreTrackingCallback, SpectralPruningArguments
from hf_spectral_prune.data.rows import causal_collator
from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.models.families import unit_groups
from hf_spectral_prune.trainer.pruning import SpectralPruningCallback
from hf_spectral_prune.trainer.schedule import PruningSchedule


class Widths(TrainerCallback):
    """Notes the parameters of the model after every step."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.seen.append(num_parameters(model))


def arguments(folder, batch_size: int, **fields) -> TrainingArguments:
    defaults = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": batch_size,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "train_sampling_strategy": "sequential",
    }
    return TrainingArguments(**defaults | fields)


def pruning_trainer(
    model: PreTrainedModel, training: TrainingArguments, watch: TrainerCallback | None = None, **fields
) -> tuple[Trainer, SpectralPruningCallback]:
    """Rounds after steps 2 and 4, in batches of 8 rows over all processes."""
    rows = [{"input_ids": ids} for ids in random_batch(48, 12)["input_ids"]]
    defaults = {"criterion": "energy", "layout": "per_layer", "target_reduction": 0.3, "target_scope": "prunable"}
    defaults |= {"round_to": 4, "min_ffn_units": 4, "num_rounds": 2, "disable_tqdm": True}
    calibration = [random_batch(4, 32, seed) for seed in range(4)]
    schedule = PruningSchedule("linear", end_step=4)
    callback = SpectralPruningCallback(SpectralPruningArguments(**defaults | fields), calibration, schedule=schedule)
    callbacks = [callback] if watch is None else [callback, watch]
    trainer = Trainer(model=model, args=training, train_dataset=rows, data_collator=causal_collator(), callbacks=callbacks)
    return trainer, callback


def tracked(trainer: Trainer) -> ScoreTrackingCallback:
    """The units scored after step 5, when both rounds are over."""
    args = SpectralPruningArguments(criterion="energy", disable_tqdm=True)
    return ScoreTrackingCallback(args, [random_batch(4, 32)], score_steps=5).attach(trainer)


def train_alone(folder) -> tuple[PreTrainedModel, SpectralPruningCallback, ScoreTrackingCallback]:
    """The same training in one process, which sees both halves of each batch."""
    trainer, callback = pruning_trainer(tiny_model(), arguments(folder, 8))
    tracking = tracked(trainer)
    trainer.train()
    return trainer.model, callback, tracking


def digest_of(model: PreTrainedModel) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def main() -> None:
    folder = Path(sys.argv[1])
    watch = Widths()
    trainer, callback = pruning_trainer(tiny_model(), arguments(folder / "out", 4, ddp_backend="gloo"), watch)
    tracking = tracked(trainer)
    trainer.train()
    model = trainer.model
    rank = torch.distributed.get_rank()
    if rank == 0:
        torch.save(model.state_dict(), folder / "rank0.pt")
    result = {
        "digest": digest_of(model),
        "sizes": [group.size for group in unit_groups(model)],
        "parameters": num_parameters(model),
        "planned": callback.plan.parameters_after,
        "kept": callback.plan.kept,
        "scores": {key: score.tolist() for key, score in tracking.scores.items()},
        "masked_while_training": set(watch.seen) == {callback.plan.parameters_before},
    }
    (folder / f"rank{rank}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
