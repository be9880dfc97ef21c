"""ResNet-20 and ResNet-56 on CIFAR-10 with 25, 50 and 70 % fewer FLOPs: accuracy before and after one short recovery.

    python benchmarks/cifar10.py --weights FOLDER --cifar10 FOLDER [--output results.json]

Weights and images are those that `cifar.py` reads. The 10,000 test images as JPEG cost every network points but tell networks
apart with a third of the noise.

Every cell starts from the same trained network. Beside the criteria of this package stands the group Taylor criterion of
torch-pruning (arXiv:2301.12900) with that library's own pruner, on the same channels and images, down to the same MACs. All
get their batch norms recalibrated on the same images, and then the same short distillation from the dense network, block by
block. Finished cells are kept in the output file, so that a killed run continues.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch_pruning
from cifar import (
    BATCH_SIZE,
    NUM_CALIBRATION,
    Block,
    Data,
    accuracy,
    augmented,
    calibration_images,
    macs_of,
    normalise,
    read_lossless,
    read_lossy,
    recover,
    trained,
)
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.data.texts import CalibrationData
from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.models.torch_model import wrap
from hf_spectral_prune.surgery import recalibrate_norms
from hf_spectral_prune.utils.environment import library_versions, machine

OURS = ("spectral", "ndi", "magnitude", "random")
# For the rival, "global" and "uniform" are the library's global ranking and one ratio for all layers.
ALLOCATIONS = {"loss_curves": "per_layer", "scores": "per_layer", "proportional": "uniform"}
REDUCTIONS = (0.25, 0.5, 0.7)
# Which positions of a channel's map the spectral criterion reads: half of ResNet-20's FLOPs, before recovery.
SPATIAL = ({"spatial": "pooled"}, {"spatial": "sampled"}, {"spatial": "sampled", "num_positions": 64}, {"spatial": "all"})


def export(folder: Path, data: Data, test: Data) -> None:
    """Writes the images that `recipes/resnet56_cifar10.yaml` reads; those to calibrate on moved and mirrored."""
    folder.mkdir(parents=True, exist_ok=True)
    moved = augmented(data.images, torch.Generator().manual_seed(0))
    for name, images, labels in (("train", moved, data.labels), ("test", test.images, test.labels)):
        save_file({"pixel_values": normalise(images).contiguous(), "labels": labels}, folder / f"{name}.safetensors")


# ---- pruning


def prune_ours(network: nn.Module, cell: dict[str, Any], calibration: CalibrationData, samples: int) -> nn.Module:
    """Removes FLOPs by a criterion of this package; the batch norms are recalibrated on the way."""
    arguments = SpectralPruningArguments(
        units=["channels"],
        criterion=cell["criterion"],
        criterion_args=cell.get("criterion_args"),
        target_scope="flops",
        target_reduction=cell["reduction"],
        layout=ALLOCATIONS[cell["allocation"]],
        allocation=cell["allocation"],
        num_allocation_samples=samples,
        round_to=1,
        min_channels=1,
        seed=cell["seed"],
        disable_tqdm=True,
        logging_strategy="no",
    )
    return SpectralPruner(network, arguments, calibration).prune().model


def prune_group_taylor(network: nn.Module, cell: dict[str, Any], calibration: CalibrationData) -> nn.Module:
    """Removes FLOPs by torch-pruning: the ratio whose result is nearest above the goal."""
    example = calibration.batches[0]["pixel_values"][:1]
    for batch in calibration.batches:
        F.cross_entropy(network(batch["pixel_values"]), batch["labels"]).backward()
    goal = macs_of(network) * (1 - cell["reduction"])
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}

    def cut(ratio: float) -> nn.Module:
        narrow = copy.deepcopy(network)
        for name, parameter in narrow.named_parameters():
            parameter.grad = gradients[name].clone()
        inside = {block.conv1 for block in narrow.modules() if isinstance(block, Block)}
        others = [layer for layer in narrow.modules() if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer not in inside]
        pruner = torch_pruning.pruner.BasePruner(
            narrow,
            example,
            importance=torch_pruning.importance.GroupTaylorImportance(),
            global_pruning=cell["allocation"] == "global",
            pruning_ratio=ratio,
            ignored_layers=others,
        )
        pruner.step()
        return narrow

    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if macs_of(cut(middle)) >= goal else (low, middle)
    narrow = cut(low)
    narrow.zero_grad(set_to_none=True)
    recalibrate_norms(wrap(narrow, example), calibration.batches)
    return narrow


# ---- the cells


def run_cell(
    dense: nn.Module, cell: dict[str, Any], calibration: CalibrationData, data: Data, tests: dict[str, Data], options: Any
) -> dict[str, Any]:
    """Prunes a copy of the dense network and recovers it; the figures of both."""
    began = time.process_time()
    network = copy.deepcopy(dense)
    if cell["criterion"] == "group_taylor":
        network = prune_group_taylor(network, cell, calibration)
    else:
        network = prune_ours(network, cell, calibration, options.allocation_samples)
    pruned_at = time.process_time()
    figures: dict[str, Any] = {"macs": macs_of(network), "parameters": num_parameters(network)}
    figures["before"] = accuracy(network, tests["lossless"])
    if cell.get("criterion_args") is None:
        recover(network, dense, data, options.recovery_steps, options.recovery_rate, cell["seed"])
        figures |= {"after": accuracy(network, tests["lossless"]), "after_lossy": accuracy(network, tests["lossy"])}
    figures["widths"] = [block.conv1.out_channels for block in network.modules() if isinstance(block, Block)]
    seconds = {"prune": pruned_at - began, "all": time.process_time() - began}
    return figures | {"cpu_seconds": {name: round(value, 1) for name, value in seconds.items()}}


def print_table(results: dict[str, Any]) -> None:
    """Mean (and standard deviation over the seeds), in per cent."""
    for depth, dense in results["dense"].items():
        print(f"ResNet-{depth}: dense {dense['accuracy']:.1f} %, lossy {dense['lossy']:.1f} %, {dense['macs'] / 1e6:.1f} M MACs")
        same: dict[str, list[dict[str, Any]]] = {}
        for cell in results["cells"]:
            if str(cell["depth"]) == depth:
                same.setdefault(key_of(cell | {"seed": None}), []).append(cell)
        for found in sorted(same.values(), key=lambda cells: (cells[0]["reduction"], "criterion_args" in cells[0])):
            words = []
            for side in ("before", "after", "after_lossy"):
                values = [cell[side] for cell in found if side in cell]
                spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                words += [f"{side} {statistics.mean(values):5.1f}{spread}"] if values else []
            first, left = found[0], statistics.mean(cell["macs"] for cell in found) / dense["macs"]
            name = f"{first['criterion']:13}{first['allocation']:13}{json.dumps(first.get('criterion_args', ''))[1:-1]}"
            print(f"  -{first['reduction']:.0%} {name} {'  '.join(words)}  ({left:.1%} of the MACs, {len(found)} seeds)")


def cells_of(depth: int, options: Any) -> list[dict[str, Any]]:
    """The cells of one network, seed by seed so that a stopped run has whole comparisons."""
    seeds, reductions = options.seeds, options.reductions
    methods = [(name, "loss_curves") for name in OURS] + [("spectral", "proportional")] * (depth == 20)
    methods += [("group_taylor", "global"), ("group_taylor", "uniform")]
    cells: list[dict[str, Any]] = [
        {"depth": depth, "reduction": reduction, "criterion": criterion, "allocation": allocation, "seed": seed}
        for seed, reduction, (criterion, allocation) in product(seeds, reductions, methods)
        if criterion in options.criteria
    ]
    variants = product(seeds, SPATIAL) if depth == 20 and 0.5 in reductions and "spectral" in options.criteria else ()
    half = {"depth": depth, "reduction": 0.5, "criterion": "spectral", "allocation": "loss_curves"}
    return cells + [half | {"seed": seed, "criterion_args": options} for seed, options in variants]


def key_of(cell: dict[str, Any]) -> str:
    """What tells a cell from the others."""
    return json.dumps([cell.get(key) for key in ("depth", "reduction", "criterion", "criterion_args", "allocation", "seed")])


def main() -> None:
    """Runs the cells that the output file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "cifar10.json")
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 56], choices=(20, 56))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--reductions", type=float, nargs="+", default=list(REDUCTIONS), choices=REDUCTIONS)
    parser.add_argument("--criteria", nargs="+", default=[*OURS, "group_taylor"], choices=[*OURS, "group_taylor"])
    parser.add_argument("--recovery_steps", type=int, default=400)
    parser.add_argument("--recovery_rate", type=float, default=0.01)
    parser.add_argument("--allocation_samples", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--export", type=Path, help="Write the images of the recipe into this folder, and do no more.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = read_lossless(options.cifar10, ["0", "1", "2", "3"], "train")
    test = read_lossless(options.cifar10, ["50_test"], "test_first1000")
    tests = {"lossless": test, "lossy": read_lossy(options.cifar10 / "cifar10_jpeg_test.npz")}
    if options.export is not None:
        export(options.export, data, test)
        return
    results: dict[str, Any] = {"dense": {}, "cells": []}
    if options.output.is_file():
        results = json.loads(options.output.read_text())
    results["protocol"] = {
        "models": "CIFAR ResNets with option-A shortcuts; channels inside the blocks are cut, down to the same MACs",
        "calibration": f"{NUM_CALIBRATION} of the 4,000 lossless training images, drawn by the seed, moved and mirrored; loss "
        f"curves on {options.allocation_samples} of them; batch norms recalibrated on the same images, after recovery on all",
        "recovery": "relative squared error of the outputs of all blocks to those of the dense network, "
        f"{options.recovery_steps} steps of {BATCH_SIZE} of the 4,000 images, moved and mirrored; Adam, rate up to "
        f"{options.recovery_rate} in a tenth of the steps, then down by a cosine; bfloat16 autocast",
        "measured": "accuracy in per cent on the first 1,000 test images, lossless, and on all 10,000 as JPEG (lossy); float32",
        "noise": "binomial standard error: "
        + ", ".join(
            f"{100 * math.sqrt(p * (1 - p) / n):.1f} points of {n} at {p:.0%}"
            for n, p in ((1000, 0.9), (1000, 0.7), (10000, 0.8))
        ),
    }
    results["machine"], results["versions"] = machine(), library_versions()
    done = {key_of(cell) for cell in results["cells"]}
    for depth in options.depths:
        dense = trained(options.weights, depth)
        results["dense"][str(depth)] = {
            "accuracy": accuracy(dense, test),
            "lossy": accuracy(dense, tests["lossy"]),
            "macs": macs_of(dense),
        }
        for cell in cells_of(depth, options):
            if key_of(cell) in done:
                continue
            calibration = calibration_images(data, NUM_CALIBRATION, cell["seed"])
            cell |= run_cell(dense, cell, calibration, data, tests, options)
            results["cells"].append(cell)
            temporary = options.output.with_suffix(".tmp")
            temporary.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(results, indent=1) + "\n")
            temporary.replace(options.output)
            print(cell, flush=True)
    print_table(results)


if __name__ == "__main__":
    main()
