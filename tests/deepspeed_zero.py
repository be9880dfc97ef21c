"""Trains and prunes a tiny model on every process of a DeepSpeed run, once for each stage; each writes what it ended with."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from accelerate.state import PartialState
from conftest import tiny_model
from data_parallel import arguments, digest_of, pruning_trainer
from transformers import TrainingArguments

STAGES = ("0", "1", "2")


def deepspeed_arguments(folder: Path, stage: int) -> TrainingArguments:
    config = {"zero_optimization": {"stage": stage}, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 1}
    every = {"save_strategy": "steps", "save_steps": 6}
    training = arguments(folder, 4, use_cpu=False, deepspeed=config | {"zero_allow_untested_optimizer": True}, **every)
    # Without an accelerator accelerate counts one process, though DeepSpeed joins two.
    rank = torch.distributed.get_rank()
    PartialState._shared_state.update(backend="gloo", num_processes=2, process_index=rank, local_process_index=rank)
    return training


def main() -> None:
    folder = Path(sys.argv[1])
    results = {}
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    for stage in STAGES:
        trainer, callback = pruning_trainer(tiny_model(), deepspeed_arguments(folder / f"out{stage}", int(stage)))
        trainer.train()
        trainer.save_model(str(folder / stage))
        results[stage] = {"digest": digest_of(trainer.model), "kept": callback.plan.kept}
    (folder / f"rank{torch.distributed.get_rank()}.json").write_text(json.dumps(results))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
