"""The MLP of `mnist_mlp.py` without 50 to 98 % of its weights, the axis of the published table of NDP.

    python benchmarks/mnist_weights.py --mnist FOLDER [--output results.json]

Neurons of both hidden layers are ranked together and leave until so many parameters are gone; then the network recovers with a
fixed number of steps. Beside the cells stands the published column (Wang and Jiang, "Neural Differentiation in Deep Networks",
CVPR 2026, Table 1) as far as it is known here. Finished cells are kept in the output file.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from pathlib import Path
from typing import Any

import torch
from mnist_mlp import PUBLISHED_NDP, TRAINING, accuracy, read_split, run_missing, train
from torch import nn

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.data.texts import CalibrationData
from hf_spectral_prune.evaluation.figures import num_parameters

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
    protocol = {
        "pruning": "share of all parameters; neurons of both hidden layers ranked together, one round",
        "recovery": f"{options.recovery_steps} steps of {TRAINING['batch_size']}, Adam, rate 1e-3 falling linearly to 0",
    }

    def run(dense: nn.Module, calibration: CalibrationData, method: str, share: float, seed: int) -> dict[str, Any]:
        return run_cell(dense, calibration, splits, method, share, seed, options.recovery_steps)

    axes = {"share": SHARES, "method": tuple(METHODS)}
    print(table(run_missing(options.output, splits, options.seeds, axes, protocol, run)))


if __name__ == "__main__":
    main()
