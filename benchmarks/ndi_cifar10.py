"""NDI over training of a narrow VGG-16 on CIFAR-10, with ReLU and with leaky ReLU.

    python benchmarks/ndi_cifar10.py --cifar10 FOLDER [--figures docs/figures] [--output results.json]

The subject of the published Fig. 1 (Wang and Jiang, "Neural Differentiation in Deep Networks", CVPR 2026), at a size for one
core: the 13 convolutions of VGG-16 with an eighth of the channels and batch norms, trained from scratch by the Trainer on
10,000 images (`cifar10_jpeg_train_batch1.npz`, see `cifar.py`), and measured by `NDITrackingCallback` on 256 others. The
leaky network is the same but for its activation. Finished runs are kept in the output file, so that a killed one continues.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar import Data, accuracy, augmented, normalise, read_lossy
from differentiation_figures import train, write_figure
from torch import nn
from transformers import set_seed

from hf_spectral_prune import NDITrackingCallback, build_images
from hf_spectral_prune.publishing.report.drawing import panels_below_each_other
from hf_spectral_prune.utils.environment import library_versions, machine
from hf_spectral_prune.utils.files import write_text
from hf_spectral_prune.utils.plot_style import LIGHT, in_style

STAGES = ((8, 8), (16, 16), (32, 32, 32), (64, 64, 64), (64, 64, 64))
ACTIVATIONS = {"ReLU": nn.ReLU, "leaky ReLU": lambda: nn.LeakyReLU(0.1)}
TRAINING = {"per_device_train_batch_size": 128, "learning_rate": 2e-3, "lr_scheduler_type": "cosine"}
NUM_TEST, NUM_MEASURED, NUM_CURVATURE = 3000, 256, 32
FIGURES = ("ndi", "correlation", "informativeness")


def make_network(activation: str, seed: int) -> nn.Sequential:
    """VGG-16 for images of 32 x 32, drawn by `seed`."""
    set_seed(seed)
    layers: list[nn.Module] = []
    inputs = 3
    for widths in STAGES:
        for width in widths:
            layers += [nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), ACTIVATIONS[activation]()]
            inputs = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs, 10))


def run(activation: str, seed: int, data: Data, test: Data, steps: int, interval: int) -> dict[str, Any]:
    """Trains one network; accuracy, and the figures of every layer at every point, first layer first."""
    began = time.process_time()
    network = make_network(activation, seed)
    generator = torch.Generator().manual_seed(seed)
    measured = test.normalised(slice(NUM_TEST, None)), test.labels[NUM_TEST:]
    calibration = build_images(measured, num_samples=NUM_MEASURED, batch_size=128, seed=0, name="CIFAR-10 test")
    tracking = NDITrackingCallback(calibration, interval, criterion_args={"num_curvature_sequences": NUM_CURVATURE})
    split = data.images, data.labels
    training = TRAINING | {"max_steps": steps}
    train(network, split, seed, 0.0, [tracking], training, lambda images: normalise(augmented(images, generator)))
    judged = Data(test.images[:NUM_TEST], test.labels[:NUM_TEST])
    points = [
        {"step": point["step"]} | {name: [group[name] for group in point["groups"].values()] for name in FIGURES}
        for point in tracking.points
    ]
    figures = {"activation": activation, "seed": seed, "accuracy": accuracy(network, judged), "points": points}
    return figures | {"cpu_seconds": round(time.process_time() - began, 1)}


def by_stage(runs: list[dict[str, Any]], name: str) -> np.ndarray:
    """(stages, points): means over the layers of a stage and over the runs."""
    values = np.array([[point[name] for point in found["points"]] for found in runs]).mean(0).T  # (layers, points)
    stage_of = [stage for stage, widths in enumerate(STAGES) for _ in widths]
    return np.stack(
        [values[[index for index, _ in members]].mean(0) for _, members in groupby(enumerate(stage_of), lambda pair: pair[1])]
    )


@in_style()
def draw(runs: list[dict[str, Any]]) -> Any:
    """NDI and squared correlation of the stages over the steps, for both activations."""
    words = {"ndi": "NDI, mean of the stage's channels", "correlation": "Squared correlation of two channels' outputs, mean"}
    figure, axes = panels_below_each_other(4, 95, below=18)
    colours = [LIGHT[name] for name in ("kept", "removed", "third", "ink", "faint")]
    steps = [point["step"] for point in runs[0]["points"]]
    panels = [(name, activation) for name in words for activation in ACTIVATIONS]
    for axis, (name, activation) in zip(axes, panels, strict=True):
        curves = by_stage([found for found in runs if found["activation"] == activation], name)
        for stage, (curve, colour) in enumerate(zip(curves, colours, strict=True), start=1):
            axis.plot(steps, curve, color=colour, linewidth=1.4, label=f"stage {stage}")
        axis.set_title(f"{words[name]}: {activation}")
        axis.grid(True, axis="y")
        axis.margins(x=0.01)
        axis.set_xlabel("step")
    axes[-1].legend(loc="upper center", bbox_to_anchor=(0.5, -0.32), ncols=5)
    return figure


def table(runs: list[dict[str, Any]]) -> str:
    """Of every stage: NDI at the start, a tenth of the way and the end, and its correlation; mean over the seeds."""
    lines = ["| network | stage | NDI: start, a tenth, half, end | squared correlation | entropy |", "|---|---|---|---|---|"]
    for activation in ACTIVATIONS:
        mine = [found for found in runs if found["activation"] == activation]
        if not mine:
            continue
        last = len(mine[0]["points"]) - 1
        places = [0, max(1, round(last / 10)), last // 2, last]
        columns = [by_stage(mine, name)[:, places] for name in FIGURES]
        words = f"{statistics.mean(found['accuracy'] for found in mine):.1f} %, {len(mine)} seeds"
        for stage in range(len(STAGES)):
            cells = [", ".join(f"{value:.3f}" for value in column[stage]) for column in columns]
            lines.append(f"| {activation} ({words}) | {stage + 1} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Trains the networks that the output file lacks, and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--figures", type=Path, default=Path(__file__).parent.parent / "docs" / "figures")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "ndi_cifar10.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--interval", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = read_lossy(options.cifar10 / "cifar10_jpeg_train_batch1.npz")
    test = read_lossy(options.cifar10 / "cifar10_jpeg_test.npz", NUM_TEST + NUM_MEASURED)
    results: dict[str, Any] = json.loads(options.output.read_text()) if options.output.is_file() else {"runs": []}
    results["protocol"] = {
        "model": f"VGG-16 with batch norms, channels of its stages {STAGES}; leaky ReLU has slope 0.1",
        "training": {
            "images": f"{len(data.labels)} as JPEG, moved and mirrored",
            "steps": options.steps,
            "optimizer": "AdamW",
            **TRAINING,
        },
        "measured": f"NDI on {NUM_MEASURED} test images (curvature on {NUM_CURVATURE}), accuracy in per cent on {NUM_TEST} "
        "others, as JPEG (binomial standard error 0.9 points at 60 %)",
    }
    results["machine"], results["versions"] = machine(), library_versions()
    done = {(found["activation"], found["seed"]) for found in results["runs"]}
    for seed in options.seeds:
        for activation in ACTIVATIONS:
            if (activation, seed) not in done:
                results["runs"].append(run(activation, seed, data, test, options.steps, options.interval))
                rounded = json.loads(json.dumps(results), parse_float=lambda text: float(f"{float(text):.5g}"))
                write_text(options.output, json.dumps(rounded) + "\n")
                print(activation, seed, results["runs"][-1]["accuracy"], results["runs"][-1]["cpu_seconds"], flush=True)
    text = "Lines of five stages of VGG-16 over training: NDI and squared correlation, with ReLU and with leaky ReLU."
    write_figure(draw(results["runs"]), options.figures, "ndi_cifar10", text)
    print(table(results["runs"]))


if __name__ == "__main__":
    main()
