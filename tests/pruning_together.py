"""Prunes a tiny model on every process of a distributed run, in several ways; each writes what it ended with."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from conftest import random_batch, tiny_model
from data_parallel import digest_of

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.cli.main import main as cria

# What decides in which way the work is shared: options of the run.
WAYS: dict[str, dict[str, Any]] = {
    "least squares": {"compensation": "least_squares", "allocation": "loss_curves", "num_rounds": 2, "save_strategy": "steps"},
    "sequential": {"layout": "per_layer", "stop_metric": "eval_perplexity", "stop_drop": 1e6},
    "by parts": {"compensation": "least_squares", "layout": "per_layer", "max_moment_gib": 1e-6},
    "statistics": {"criterion": "taylor", "compensation": "none", "layout": "per_layer", "allocation": "fisher"},
}


def pruned(way: str, folder: Path) -> dict[str, Any]:
    """What a run ends with; of five batches one process gets three, and of two evaluated rows each gets one."""
    model = tiny_model()
    calibration = [random_batch(4, 32, seed, padding="left" if seed == 1 else None) for seed in range(5)]
    args = SpectralPruningArguments(
        output_dir=str(folder / way.replace(" ", "_")),
        target_reduction=0.3,
        target_scope="prunable",
        round_to=4,
        min_ffn_units=4,
        disable_tqdm=True,
        self_check=False,
        **WAYS[way],
    )
    pruner = SpectralPruner(model, args, calibration, [random_batch(1, 32, seed) for seed in (8, 9)])
    output = pruner.prune()
    return {
        "plan": output.plan.to_json(),
        "scores": {key: score.tolist() for key, score in pruner.scores.items()},
        "figures": output.report.metrics_before | output.report.metrics_after,
        "digest": digest_of(output.model),
        "saved": sorted(path.name for path in Path(str(args.output_dir)).glob("*")),
    }


def command(folder: Path) -> list[str]:
    """A run of the command line on the model in `folder`."""
    flags = {"model_name_or_path": folder / "dense", "calibration_file": folder / "text.txt", "output_dir": folder / "cria"}
    flags |= {"num_calibration_samples": 6, "calibration_batch_size": 2, "max_seq_length": 16, "target_reduction": 0.2}
    flags |= {"num_eval_samples": 3, "device": "cpu", "disable_tqdm": "true", "round_to": 4}
    return ["prune", *(word for name, value in flags.items() for word in (f"--{name}", str(value)))]


def main() -> None:
    folder = Path(sys.argv[1])
    results: dict[str, Any] = {way: pruned(way, folder) for way in WAYS}
    results["command"] = cria(command(folder))
    results["refused"] = cria(command(folder))  # the folder is not empty any more
    (folder / f"rank{torch.distributed.get_rank()}.json").write_text(json.dumps(results))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
