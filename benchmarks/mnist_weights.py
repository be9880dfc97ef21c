"""The MLP of `mnist_mlp.py` without 50 to 98 % of its weights, the axis of the published table of NDP.

    python benchmarks/mnist_weights.py --mnist FOLDER [--output results.json]

Neurons of both hidden layers are ranked together and leave until so many parameters are gone; then the network recovers with a
fixed number of steps. Beside the cells stands the published column (Wang and Jiang, "Neural Differentiation in Deep Networks",
CVPR 2026, Table 1) as far as it is known here. Finished cells are kept in the output file.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from itertools import product
from pathlib import Path
from typing import Any

import torch
from mnist_mlp import NUM_CALIBRATION, PUBLISHED_NDP, TRAINING, accuracy, read_split, train, trained
from torch import nn

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.data.images import build_images
from hf_spectral_prune.data.texts import CalibrationData
from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.utils.environment import library_versions, machine
from hf_spectral_prune.utils.files import write_text

SHARES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
METHODS: dict[str, dict[str, Any]] = {
    "ndi, by importance": {"criterion": "ndi", "rank_by": "importance", "criterion_args": {"norms": "producers"}},
    "ndi, by importance per parameter": {"criterion": "ndi"},
    "magnitude, per parameter": {"criterion": "magnitude"},
}


def run_cell(
    dense: nn.Module, calibration: CalibrationData, splits: Any, method: str, share: float, seed: int, steps: int
) -> dict[str, Any]:
    """Prunes a copy of the dense network and recovers it; the figures of both."""
    args = SpectralPruningArguments(
        target_reduction=share,
        target_scope="all",
        layout="per_layer",
        allocation="scores",
        round_to=1,
        min_channels=1,
        seed=seed,
        disable_tqdm=True,
        logging_strategy="no",
        **METHODS[method],
    )
    network = SpectralPruner(copy.deepcopy(dense), args, calibration).prune().model
    before = accuracy(network, splits[1])
    train(network, splits[0], steps, 1e-3, seed)
    widths = [layer.out_features for layer in network.modules() if isinstance(layer, nn.Linear)][:-1]
    figures = {"before": round(before, 2), "after": round(accuracy(network, splits[1]), 2)}
    return figures | {"widths": widths, "parameters": num_parameters(network)}


def table(results: dict[str, Any]) -> str:
    """Accuracy after recovery, mean and range over the seeds."""
    lines = [f"| weights removed | published NDP | {' | '.join(METHODS)} |", f"|---|---|{'---|' * len(METHODS)}"]
    for share in SHARES:
        words = []
        for method in METHODS:
            found = [cell["after"] for cell in results["cells"] if (cell["method"], cell["share"]) == (method, share)]
            words.append(f"{statistics.mean(found):.2f} ({min(found):.2f} to {max(found):.2f})" if found else "not run")
        lines.append(f"| {share:.0%} | {PUBLISHED_NDP.get(str(share), 'not at hand')} | {' | '.join(words)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs the cells that the output file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "mnist_weights.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recovery_steps", type=int, default=938)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    splits = read_split(options.mnist, "train"), read_split(options.mnist, "t10k")
    results: dict[str, Any] = {"dense": {}, "cells": []}
    if options.output.is_file():
        results = json.loads(options.output.read_text())
    results["protocol"] = {
        "model": "784-300-100-10, ReLU; one network a seed",
        "training": TRAINING,
        "calibration": f"{NUM_CALIBRATION} training images",
        "pruning": "share of all parameters; neurons of both hidden layers ranked together, one round",
        "recovery": f"{options.recovery_steps} steps of {TRAINING['batch_size']}, Adam, rate 1e-3 falling linearly to 0",
        "measured": "accuracy in per cent on the 10,000 test images (binomial standard error about 0.13 points at 98 %)",
    }
    results["machine"], results["versions"] = machine(), library_versions()
    done = {(cell["method"], cell["share"], cell["seed"]) for cell in results["cells"]}
    for seed in options.seeds:
        todo = [(share, method) for share, method in product(SHARES, METHODS) if (method, share, seed) not in done]
        if not todo:
            continue
        dense = trained(splits[0], seed)
        results["dense"][str(seed)] = round(accuracy(dense, splits[1]), 2)
        calibration = build_images(splits[0], num_samples=NUM_CALIBRATION, batch_size=128, seed=seed, name="MNIST train")
        for share, method in todo:
            cell = run_cell(dense, calibration, splits, method, share, seed, options.recovery_steps)
            results["cells"].append({"method": method, "share": share, "seed": seed, **cell})
            write_text(options.output, json.dumps(results, indent=1) + "\n")
            print(results["cells"][-1], flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
