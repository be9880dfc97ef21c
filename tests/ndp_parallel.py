"""Trains with the regulariser, tracks NDI and prunes by NDP on every process of a data-parallel run."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import torch
from conftest import random_batch, tiny_model
from data_parallel import arguments, digest_of
from transformers import Trainer, TrainerCallback

from hf_spectral_prune import NDIRegularizedTrainerMixin, NDITrackingCallback, NDPArguments, NDPCallback, PruningSchedule
from hf_spectral_prune.data.rows import causal_collator
from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.studies.differentiation.pruning import affected_parameters

CHEAP = {"num_probes": 1, "num_curvature_sequences": 2}


class DiverseTrainer(NDIRegularizedTrainerMixin, Trainer):
    """A plain Trainer with the regulariser."""


class Watch(TrainerCallback):
    """Notes which weights moved after the last round."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 4:
            self.weights = copy.deepcopy(model.state_dict())
        self.moved = {
            name
            for name, value in model.named_parameters()
            if state.global_step > 4 and not torch.equal(value, self.weights[name])
        }
        self.model = model


def main() -> None:
    folder = Path(sys.argv[1])
    args = NDPArguments(
        target_reduction=0.4,
        target_scope="prunable",
        round_to=4,
        num_rounds=2,
        finetune_share=0.3,
        criterion_args=CHEAP,
        disable_tqdm=True,
    )
    calibration = [random_batch(4, 32, seed) for seed in range(2)]
    callback = NDPCallback(args, calibration, schedule=PruningSchedule("linear", end_step=4))
    tracking, watch = NDITrackingCallback(calibration, 3, criterion_args=CHEAP), Watch()
    trainer = DiverseTrainer(
        model=tiny_model(),
        args=arguments(folder / "out", 4, ddp_backend="gloo"),
        train_dataset=[{"input_ids": ids} for ids in random_batch(48, 12)["input_ids"]],
        data_collator=causal_collator(),
        callbacks=[callback, tracking, watch],
        ndi_weight=1.0,
    )
    trainer.train()
    chosen = affected_parameters(trainer.model, callback.plan, 0.3)
    result = {
        "digest": digest_of(trainer.model),
        "parameters": num_parameters(trainer.model),
        "planned": callback.plan.parameters_after,
        "points": tracking.points,
        "moved": sorted(watch.moved),
        "learning": sorted(name for name, value in trainer.model.named_parameters() if value in chosen),
    }
    (folder / f"rank{torch.distributed.get_rank()}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
