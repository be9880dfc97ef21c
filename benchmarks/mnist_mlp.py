"""An MLP on MNIST pruned by neurons: accuracy before and after the same recovery, for several criteria.

    python benchmarks/mnist_mlp.py --mnist FOLDER [--output results.json]
    python benchmarks/mnist_mlp.py --mnist FOLDER --export mnist    # a trained network and the images, for the recipe

FOLDER holds the four IDX files (`train-images-idx3-ubyte.gz`, ...). For every seed a 784-300-100-10 network is trained to at
least 98 %; a cell removes the same share of the neurons of both hidden layers by one criterion and recovers with a fixed
number of steps. All cells of a seed start from the same network. Finished cells are kept in the output file, so that a
killed run continues. Beside them stands the published column of NDP (Wang and Jiang, "Neural Differentiation in Deep
Networks", CVPR 2026), whose sparsity is of weights, not of neurons: 50 % of the neurons here are about 63 % of the weights.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.data.images import build_images
from hf_spectral_prune.data.texts import CalibrationData
from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.utils.environment import library_versions, machine
from hf_spectral_prune.utils.files import write_text

CRITERIA = ("spectral", "ndi", "magnitude", "random")
SPARSITIES = (0.5, 0.7, 0.9)
PUBLISHED_NDP = {"0.5": 98.55, "0.7": 98.46, "0.9": 97.45, "0.95": 96.68, "0.98": 94.59}
HIDDEN = (300, 100)
TRAINING = {"epochs": 12, "learning_rate": 1e-3, "batch_size": 128}
NUM_CALIBRATION = 1024


class MLP(nn.Module):
    """784-300-100-10 with ReLU."""

    def __init__(self) -> None:
        super().__init__()
        widths = (784, *HIDDEN, 10)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, 10) of images (B, 784)."""
        return self.layers(inputs)


def read_idx(file: Path) -> Tensor:
    """Contents of an IDX file of bytes."""
    with gzip.open(file) as stream:
        data = stream.read()
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(data[3])]
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape).copy())


def read_split(folder: Path, name: str) -> tuple[Tensor, Tensor]:
    """(N, 784) standardised images and (N,) labels of "train" or "t10k"."""
    images = read_idx(folder / f"{name}-images-idx3-ubyte.gz").flatten(1).float() / 255
    return (images - 0.1307) / 0.3081, read_idx(folder / f"{name}-labels-idx1-ubyte.gz").long()


def train(network: nn.Module, data: tuple[Tensor, Tensor], steps: int, learning_rate: float, seed: int) -> None:
    """Adam with a linearly falling rate; batches drawn by `seed`."""
    images, labels = data
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    order: list[Tensor] = []
    network.train()
    for _ in range(steps):
        if not order:
            order = list(torch.randperm(len(images), generator=generator).split(TRAINING["batch_size"]))
        index = order.pop()
        loss = nn.functional.cross_entropy(network(images[index]), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()


@torch.inference_mode()
def accuracy(network: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Per cent of right answers."""
    return 100 * (network(data[0]).argmax(1) == data[1]).float().mean().item()


def trained(data: tuple[Tensor, Tensor], seed: int) -> MLP:
    """The dense network of one seed."""
    torch.manual_seed(seed)
    dense = MLP()
    steps = TRAINING["epochs"] * -(-len(data[0]) // int(TRAINING["batch_size"]))
    train(dense, data, steps, TRAINING["learning_rate"], seed)
    return dense


def export(folder: Path, dense: nn.Module, splits: Any) -> None:
    """Writes what `recipes/mnist_mlp.yaml` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dense.state_dict(), folder / "mlp.safetensors")
    for name, (images, labels) in zip(("train", "test"), splits, strict=True):
        save_file({"pixel_values": images, "labels": labels}, folder / f"{name}.safetensors")


def reduction_of(network: nn.Module, sparsity: float) -> float:
    """The fraction of all parameters that go with this share of the neurons of every hidden layer."""
    widths = [784, *(round(width * (1 - sparsity)) for width in HIDDEN), 10]
    wanted = sum((inputs + 1) * outputs for inputs, outputs in pairwise(widths))
    return (num_parameters(network) - wanted + 0.5) / num_parameters(network)


def run_cell(
    dense: nn.Module, calibration: CalibrationData, splits: Any, criterion: str, sparsity: float, seed: int, options: Any
) -> dict[str, Any]:
    """Prunes a copy of the dense network and recovers it; the figures of both."""
    began = time.perf_counter()
    network = copy.deepcopy(dense)
    arguments = SpectralPruningArguments(
        units=["channels"],
        criterion=criterion,
        target_reduction=reduction_of(network, sparsity),
        target_scope="all",
        round_to=1,
        min_channels=1,
        seed=seed,
        disable_tqdm=True,
        logging_strategy="no",
    )
    output = SpectralPruner(network, arguments, calibration).prune()
    widths = [len(kept) for kept in output.plan.kept.values()]
    assert widths == [round(width * (1 - sparsity)) for width in HIDDEN], widths
    pruned_at = time.perf_counter()
    before = accuracy(output.model, splits[1])
    train(output.model, splits[0], options.recovery_steps, options.recovery_rate, seed)
    return {
        "before": round(before, 2),
        "after": round(accuracy(output.model, splits[1]), 2),
        "widths": widths,
        "parameters": num_parameters(output.model),
        "seconds": {"prune": round(pruned_at - began, 1), "all": round(time.perf_counter() - began, 1)},
    }


def run_missing(
    output: Path,
    splits: Any,
    seeds: Sequence[int],
    axes: dict[str, Sequence[Any]],
    protocol: dict[str, Any],
    run: Callable[..., dict[str, Any]],
) -> dict[str, Any]:
    """Runs the cells that the output file lacks, and writes it after each one.

    Args:
        splits: training and test data.
        axes: {name: values} of a cell beside its seed.
        protocol: what is told beside model, training, calibration and measure.
        run: figures of a cell; gets the seed's dense network and calibration data, then the cell's values and seed by name.
    """
    results: dict[str, Any] = {"dense": {}, "cells": []}
    if output.is_file():
        results = json.loads(output.read_text())
    results["protocol"] = {
        "model": "784-300-100-10, ReLU; one network a seed",
        "training": TRAINING,
        "calibration": f"{NUM_CALIBRATION} training images",
        **protocol,
        "measured": "accuracy in per cent on the 10,000 test images (binomial standard error about 0.13 points at 98 %)",
    }
    results["machine"], results["versions"] = machine(), library_versions()
    done = [{name: cell[name] for name in (*axes, "seed")} for cell in results["cells"]]
    cells = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    for seed in seeds:
        todo = [cell | {"seed": seed} for cell in cells if cell | {"seed": seed} not in done]
        if not todo:
            continue
        dense = trained(splits[0], seed)
        results["dense"][str(seed)] = round(accuracy(dense, splits[1]), 2)
        print(f"seed {seed}: dense {results['dense'][str(seed)]} %", flush=True)
        calibration = build_images(splits[0], num_samples=NUM_CALIBRATION, batch_size=128, seed=seed, name="MNIST train")
        for cell in todo:
            results["cells"].append(cell | run(dense, calibration, **cell))
            output.parent.mkdir(parents=True, exist_ok=True)
            write_text(output, json.dumps(results, indent=1) + "\n")
            print(results["cells"][-1], flush=True)
    return results


def print_table(results: dict[str, Any]) -> None:
    """Mean and standard deviation over the seeds, in per cent."""
    dense = list(results["dense"].values())
    print(f"dense {statistics.mean(dense):.2f} % ({', '.join(f'{value:.2f}' for value in dense)})")
    for sparsity in SPARSITIES:
        print(f"{sparsity:.0%} of the neurons; published NDP at {sparsity:.0%} of the weights: {PUBLISHED_NDP[str(sparsity)]}")
        for criterion in CRITERIA:
            cells = [cell for cell in results["cells"] if (cell["criterion"], cell["sparsity"]) == (criterion, sparsity)]
            parts = []
            for name in ("before", "after"):
                values = [cell[name] for cell in cells]
                spread = statistics.stdev(values) if len(values) > 1 else float("nan")
                parts.append(f"{name} {statistics.mean(values):6.2f} ± {spread:5.2f}" if values else f"{name} -")
            print(f"  {criterion:10} {'   '.join(parts)}")


def main() -> None:
    """Runs the cells that the output file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "mnist_mlp.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recovery_steps", type=int, default=938)
    parser.add_argument("--recovery_rate", type=float, default=1e-3)
    parser.add_argument("--export", type=Path, help="write the first seed's network and the images here, and do no more")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    splits = read_split(options.mnist, "train"), read_split(options.mnist, "t10k")
    if options.export is not None:
        export(options.export, trained(splits[0], options.seeds[0]), splits)
        return
    protocol = {
        "recovery": f"{options.recovery_steps} steps of {TRAINING['batch_size']} images, Adam, learning rate "
        f"{options.recovery_rate} falling linearly to 0",
        "published_ndp": {"at weight sparsity": PUBLISHED_NDP},
    }
    axes = {"sparsity": SPARSITIES, "criterion": CRITERIA}

    def run(dense: MLP, calibration: CalibrationData, criterion: str, sparsity: float, seed: int) -> dict[str, Any]:
        return run_cell(dense, calibration, splits, criterion, sparsity, seed, options)

    print_table(run_missing(options.output, splits, options.seeds, axes, protocol, run))


if __name__ == "__main__":
    main()
