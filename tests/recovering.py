"""Recovers a pruned model on every process of a data-parallel run; each writes what it ended with."""

from __future__ import annotations

import copy
import json
import os
import sys
from pathlib import Path

import torch
from conftest import tiny_model
from data_parallel import digest_of
from transformers import PreTrainedModel, TrainingArguments

from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.models.families import unit_groups
from hf_spectral_prune.recovery.recover import RecoveryArguments, RecoveryOutput, recover
from hf_spectral_prune.surgery import apply_plan, settle_class
from hf_spectral_prune.surgery.plan import PruningPlan

RECOVERIES = ("full", "lora", "distill")


def patterned_rows(count: int = 48, length: int = 16, seed: int = 0) -> list[dict]:
    """Sequences that a tiny model learns quickly: each token follows from the one before it."""
    starts = torch.randint(3, 13, (count,), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": [3 + (int(start) - 3 + step) % 10 for step in range(length)]} for start in starts]


def pruned_and_dense() -> tuple[PreTrainedModel, PreTrainedModel]:
    """Every third FFN unit is gone."""
    dense = tiny_model()
    model = copy.deepcopy(dense)
    sizes = {group.key: group.size for group in unit_groups(model, ["ffn"])}
    kept = {key: tuple(unit for unit in range(size) if unit % 3) for key, size in sizes.items()}
    plan = PruningPlan(model.config.model_type, sizes, kept, num_parameters(model), 0)
    return settle_class(apply_plan(model, plan)), dense


def recovered(folder, method: str, batch_size: int, *, worse: bool = False, **options) -> RecoveryOutput:
    """Twelve steps (thirty to make it worse) in batches of 8 rows over all processes, judged on batches of 4 rows."""
    model, dense = pruned_and_dense()
    training = TrainingArguments(
        output_dir=str(folder),
        max_steps=30 if worse else 12,
        learning_rate=2e-2 if worse else 1e-2,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=4,
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        ddp_backend="gloo" if "RANK" in os.environ else None,
        **options.pop("training", {}),
    )
    held_out = patterned_rows(16, seed=1)
    if worse:  # the opposite of what was trained
        held_out = [{"input_ids": row["input_ids"][::-1]} for row in held_out]
    args = RecoveryArguments(method=method, distill_alpha=0.1, distill_hidden_weight=0.1)
    teacher = dense if method == "distill" else None
    return recover(model, args, training, patterned_rows(), held_out, teacher=teacher, **options)


def main() -> None:
    folder = Path(sys.argv[1])
    results = {}

    def note(name: str, output: RecoveryOutput) -> None:
        state = output.model.state_dict()
        if torch.distributed.get_rank() == 0:
            torch.save(state, folder / f"{name}.pt")
        results[name] = {"kept": output.kept, "metrics": output.metrics, "digest": digest_of(output.model), "notes": output.notes}

    for method in RECOVERIES:
        note(method, recovered(folder / "out", method, 4))
    note("worse", recovered(folder / "out", "full", 4, worse=True))
    results["before"] = {"digest": digest_of(pruned_and_dense()[0])}
    # What a user measures may differ between processes: here it falls on the first and rises on the second.
    sign = 1 if torch.distributed.get_rank() else -1
    figures = iter([1.0, 1.0 + 0.1 * sign])
    judged = {"metric_for_best_model": "quality", "greater_is_better": True}
    note("disputed", recovered(folder / "out", "full", 4, training=judged, compute_metrics=lambda _: {"quality": next(figures)}))
    (folder / f"rank{torch.distributed.get_rank()}.json").write_text(json.dumps(results))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
