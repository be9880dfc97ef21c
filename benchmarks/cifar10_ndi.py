"""ResNet-20, -32 and -56 on CIFAR-10 with fewer FLOPs by neural differentiation, and by magnitude ranked in the same way.

    python benchmarks/cifar10_ndi.py --weights FOLDER --cifar10 FOLDER [--output results.json]

The axis of the published table of NDP on residual networks (Wang and Jiang, "Neural Differentiation in Deep Networks", CVPR
2026), whose figures are not known here. Channels inside the blocks are ranked over the whole network in one round, as in its
Algorithm 1 (by importance itself, weights of the producers), or by importance per FLOP; they leave until so many FLOPs are
gone. Weights, images and recovery are those of `cifar10.py`, with fewer steps. Finished cells are kept in the output file, so
that a killed run continues.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
from cifar import (
    BATCH_SIZE,
    NUM_CALIBRATION,
    Block,
    CifarResNet,
    Data,
    accuracy,
    calibration_images,
    macs_of,
    read_lossless,
    read_lossy,
    recover,
    trained,
)

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.data.texts import CalibrationData
from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.utils.environment import library_versions, machine
from hf_spectral_prune.utils.files import write_text

REDUCTIONS = (0.25, 0.5, 0.7)
PRODUCERS = {"norms": "producers"}
METHODS: dict[str, dict[str, Any]] = {
    "ndi, by importance": {"criterion": "ndi", "rank_by": "importance", "criterion_args": PRODUCERS},
    "ndi, per FLOP": {"criterion": "ndi", "criterion_args": PRODUCERS},
    "magnitude, by importance": {"criterion": "magnitude", "rank_by": "importance"},
    "magnitude, per FLOP": {"criterion": "magnitude"},
}
NUM_LOSSY = 2000


def run_cell(
    dense: CifarResNet, cell: dict[str, Any], calibration: CalibrationData, data: Data, tests: dict[str, Data], options: Any
) -> dict[str, Any]:
    """Prunes a copy of the dense network and recovers it; the figures of both."""
    began = time.process_time()
    args = SpectralPruningArguments(
        target_scope="flops",
        target_reduction=cell["reduction"],
        layout="per_layer",
        allocation="scores",
        round_to=1,
        min_channels=1,
        seed=cell["seed"],
        disable_tqdm=True,
        logging_strategy="no",
        **METHODS[cell["method"]],
    )
    network = SpectralPruner(copy.deepcopy(dense), args, calibration).prune().model
    figures: dict[str, Any] = {"macs": macs_of(network), "parameters": num_parameters(network)}
    figures["before"] = {"lossless": accuracy(network, tests["lossless"])}
    recover(network, dense, data, options.recovery_steps, options.recovery_rate, cell["seed"])
    figures["after"] = {name: accuracy(network, test) for name, test in tests.items()}
    figures["widths"] = [block.conv1.out_channels for block in network.modules() if isinstance(block, Block)]
    return figures | {"cpu_seconds": round(time.process_time() - began, 1)}


def table(results: dict[str, Any]) -> str:
    """Accuracy before and after recovery, seeds side by side."""
    lines = [
        "| network | FLOPs removed | ranked by | before | after | after, JPEG | narrowest |",
        "|---|---|---|---|---|---|---|",
    ]
    for depth, reduction, method in product(results["dense"], REDUCTIONS, METHODS):
        asked = {"depth": int(depth), "reduction": reduction, "method": method}
        found = [cell for cell in results["cells"] if {name: cell[name] for name in asked} == asked]
        if not found:
            continue
        columns = [
            ", ".join(f"{cell[side][test]:.1f}" for cell in found)
            for side, test in (("before", "lossless"), ("after", "lossless"), ("after", "lossy"))
        ]
        narrowest = ", ".join(str(min(cell["widths"])) for cell in found)
        lines.append(f"| ResNet-{depth} | {reduction:.0%} | {method} | {' | '.join(columns)} | {narrowest} |")
    return "\n".join(lines)


def main() -> None:
    """Runs the cells that the output file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "cifar10_ndi.json")
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 32, 56], choices=(20, 32, 56))
    parser.add_argument("--reductions", type=float, nargs="+", default=list(REDUCTIONS), choices=REDUCTIONS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--recovery_steps", type=int, default=60)
    parser.add_argument("--recovery_rate", type=float, default=0.01)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = read_lossless(options.cifar10, ["0", "1", "2", "3"], "train").to(options.device)
    lossy = read_lossy(options.cifar10 / "cifar10_jpeg_test.npz", NUM_LOSSY).to(options.device)
    tests = {"lossless": read_lossless(options.cifar10, ["50_test"], "test_first1000").to(options.device), "lossy": lossy}
    results: dict[str, Any] = json.loads(options.output.read_text()) if options.output.is_file() else {"dense": {}, "cells": []}
    results["protocol"] = {
        "calibration": f"{NUM_CALIBRATION} of the 4,000 lossless training images; batch norms recalibrated on them",
        "recovery": f"outputs of all blocks taught by the dense network, {options.recovery_steps} steps of {BATCH_SIZE} of the "
        f"4,000 images, moved and mirrored; Adam, rate up to {options.recovery_rate}; then batch norms recalibrated on all 4,000",
        "measured": f"accuracy in per cent on the first 1,000 test images, lossless, and on the first {NUM_LOSSY} as JPEG "
        "(lossy); binomial standard errors 0.9 points of 1,000 at 90 % and of 2,000 at 80 %",
    }
    results["machine"], results["device"], results["versions"] = machine(), options.device, library_versions()
    done = [{name: cell[name] for name in ("depth", "reduction", "method", "seed")} for cell in results["cells"]]
    for depth in options.depths:
        dense = trained(options.weights, depth).to(options.device)
        results["dense"][str(depth)] = {name: accuracy(dense, test) for name, test in tests.items()} | {"macs": macs_of(dense)}
        for seed, reduction, method in product(options.seeds, options.reductions, options.methods):
            cell: dict[str, Any] = {"depth": depth, "reduction": reduction, "method": method, "seed": seed}
            if cell in done:
                continue
            calibration = calibration_images(data, NUM_CALIBRATION, seed)
            results["cells"].append(cell | run_cell(dense, cell, calibration, data, tests, options))
            write_text(options.output, json.dumps(results, indent=1) + "\n")
            print(results["cells"][-1], flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
