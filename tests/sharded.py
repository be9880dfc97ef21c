"""Trains and prunes a tiny model whose weights FSDP2 shards over the processes; each writes what it ended with.

Twice: sharded by accelerate, as `fsdp=True` asks, and by transformers as the model is loaded.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from conftest import random_batch, tiny_model
from data_parallel import arguments, pruning_trainer, tracked
from transformers import AutoModelForCausalLM, TrainerCallback, TrainingArguments
from transformers.distributed.configuration_utils import DistributedConfig

from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.models.distributed import shards_weights


class Shards(TrainerCallback):
    """Notes the parameters of the model after every step, those that lie here, and whether masked weights are zero."""

    def __init__(self):
        self.whole, self.here = set(), set()

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.whole.add(num_parameters(model))
        self.here.add(sum(parameter.to_local().numel() for parameter in model.parameters()))


def fsdp_arguments(folder, **fields) -> TrainingArguments:
    training = arguments(folder, 4, ddp_backend="gloo", fsdp=True, **fields)
    # accelerate takes `fsdp` up on accelerators only, so these processes say that they have one.
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_XPU
    return training


def run(folder: Path, model, training: TrainingArguments, resume: str | None = None) -> dict:
    """Trains; compares the masked and the pruned model; saves as a user would."""
    watch = Shards()
    trainer, callback = pruning_trainer(model, training, watch)
    tracking = tracked(trainer)
    trainer.train(resume_from_checkpoint=resume)
    pruned = callback.pruned_model
    assert (pruned is None) == (torch.distributed.get_rank() > 0)
    batch = random_batch()
    with torch.no_grad():
        masked = trainer.model.eval()(**batch).logits  # both processes take part
        if pruned is not None:
            torch.testing.assert_close(pruned.eval()(**batch).logits, masked, rtol=1e-4, atol=1e-4)
    trainer.save_model(str(folder))
    return {
        "whole": sorted(watch.whole),
        "here": sorted(watch.here),
        "kept": callback.plan.kept,
        "scores": {key: score.tolist() for key, score in callback.scores.items()},
        "tracked": {key: score.tolist() for key, score in tracking.scores.items()},
        "parameters_before": callback.plan.parameters_before,
        "parameters_after": callback.plan.parameters_after,
    }


def refused(run: Callable[[], object]) -> str:
    try:
        run()
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main() -> None:
    folder = Path(sys.argv[1])
    results = {}
    every = {"save_strategy": "steps", "save_steps": 3}
    results["fsdp"] = run(folder / "fsdp", tiny_model(), fsdp_arguments(folder / "out", **every))
    checkpoint = str(folder / "out" / "checkpoint-3")
    results["resumed"] = run(folder / "resumed", tiny_model(), fsdp_arguments(folder / "out2"), resume=checkpoint)
    # A target that only the first process finds out of reach, as it alone scores.
    trainer, _ = pruning_trainer(tiny_model(), fsdp_arguments(folder / "out3"), target_reduction=0.99)
    results["refused"] = refused(trainer.train)
    os.environ.pop("ACCELERATE_USE_FSDP")
    loaded = AutoModelForCausalLM.from_pretrained(folder / "dense", distributed_config=DistributedConfig(fsdp_size=2))
    results["loaded"] = run(folder / "loaded", loaded, arguments(folder / "out4", 4, ddp_backend="gloo"))
    split = AutoModelForCausalLM.from_pretrained(folder / "dense", distributed_config=DistributedConfig(tp_size=2))
    results["tensor_parallel"] = refused(lambda: shards_weights(split))
    (folder / f"rank{torch.distributed.get_rank()}.json").write_text(json.dumps(results))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
