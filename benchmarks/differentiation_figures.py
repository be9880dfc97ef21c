"""NDI over training, and penultimate features with and without the regulariser, on MNIST.

    python benchmarks/differentiation_figures.py --mnist FOLDER [--ndp] [--figures docs/figures] [--output results.json]

FOLDER holds the four IDX files (`train-images-idx3-ubyte.gz`, ...). A 784-256-128-64-64-10 network is trained on 20,000
images by the Trainer, once per seed and weight of the regulariser, and measured on the test images. `ndi_over_training`
shows the layers' NDI while it trains without a regulariser; `tsne_features` the t-SNE of the features before the last layer,
of the first seed. A t-SNE map alone shows little, so the figures beside it are measured in the features themselves, over
all seeds. With `--ndp` networks are also pruned while they train. Finished cells are kept in the output file, so that a killed
run continues. About 4 minutes on one core, and as much again with `--ndp`.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mnist_mlp import read_split
from PIL import Image
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

from hf_spectral_prune import (
    NDIRegularizedTrainerMixin,
    NDITrackingCallback,
    NDPArguments,
    NDPCallback,
    PruningSchedule,
    SpectralPruningArguments,
    SpectralPruningCallback,
    build_images,
)
from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.models.torch_model import TorchModelForImageClassification, wrap
from hf_spectral_prune.publishing.report.drawing import new_figure, panel, panels_below_each_other
from hf_spectral_prune.publishing.report.svg import to_png, to_svg
from hf_spectral_prune.utils.environment import library_versions, machine
from hf_spectral_prune.utils.files import write_text
from hf_spectral_prune.utils.plot_style import CLASSES, LIGHT, in_style

WIDTHS = (784, 256, 128, 64, 64, 10)
TRAINING = {"max_steps": 600, "per_device_train_batch_size": 128, "learning_rate": 1e-3}
NUM_TRAIN, NUM_FEATURES, NUM_TSNE = 20_000, 2_000, 1_000
WEIGHTS = (0.0, 0.1, 1.0, 10.0)
SHOWN = 1.0
TRACKING = {"interval_steps": 30, "criterion_args": {"num_curvature_sequences": 32}}
Split = tuple[Tensor, Tensor]


class DiverseTrainer(NDIRegularizedTrainerMixin, Trainer):
    """A plain Trainer with the regulariser."""


def make_network(seed: int) -> nn.Sequential:
    """An MLP with ReLU, drawn by `seed`."""
    set_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(WIDTHS):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def train(
    network: nn.Sequential,
    data: Split,
    seed: int,
    weight: float,
    callbacks: list[Any],
    training: dict[str, Any] = TRAINING,
    prepare: Callable[[Tensor], Tensor] = torch.clone,
) -> None:
    """One run of the Trainer; what it writes goes to a folder that is thrown away.

    Args:
        weight: of the regulariser.
        prepare: makes the network's inputs of a batch of the images.
    """
    model: TorchModelForImageClassification = wrap(network, prepare(data[0][:1]))
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"output_dir": folder, "save_strategy": "no", "logging_strategy": "no", "report_to": "none"}
        arguments = TrainingArguments(**training, **options, seed=seed, use_cpu=True, disable_tqdm=True)
        trainer = DiverseTrainer(
            model=model,
            args=arguments,
            train_dataset=list(range(len(data[0]))),  # a batch is taken from the tensors at once
            data_collator=lambda rows: {"pixel_values": prepare(data[0][rows]), "labels": data[1][rows]},
            callbacks=callbacks,
            ndi_weight=weight,
            ndi_units=["channels"],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    network.eval()


@torch.inference_mode()
def features_of(network: nn.Sequential, images: Tensor) -> Tensor:
    """(N, 64): what the last layer reads."""
    return network[:-1](images)


@torch.inference_mode()
def accuracy(network: nn.Module, data: Split) -> float:
    """Per cent of right answers."""
    return 100 * (network(data[0]).argmax(1) == data[1]).float().mean().item()


def figures_of(features: Tensor, labels: Tensor) -> dict[str, float]:
    """What can be said of features without a figure.

    - knn: accuracy of 10 nearest neighbours, per cent, five folds.
    - silhouette: by digit, Euclidean, of standardised features; -1 to 1.
    - correlation: mean squared correlation over pairs of units that are not silent.
    - rank: exp of the entropy of the covariance's eigenvalue shares: how many directions the features use.
    - silent: units that never respond.
    """
    alive = features.std(0) > 0
    values = features[:, alive].double()
    scaled = ((values - values.mean(0)) / values.std(0)).numpy()
    matrix = np.corrcoef(scaled.T)
    share = np.linalg.eigvalsh(np.cov(values.numpy().T)).clip(1e-12)
    share /= share.sum()
    pairs = len(matrix) * (len(matrix) - 1)
    return {
        "knn": 100 * float(cross_val_score(KNeighborsClassifier(10), scaled, labels.numpy(), cv=5).mean()),
        "silhouette": float(silhouette_score(scaled, labels.numpy())),
        "correlation": float((np.square(matrix).sum() - len(matrix)) / pairs),
        "rank": float(np.exp(-(share * np.log(share)).sum())),
        "silent": int((~alive).sum()),
    }


def embed(features: Tensor, labels: Tensor, seed: int) -> tuple[np.ndarray, float]:
    """t-SNE (N, 2) of the features, and its silhouette by digit."""
    places = TSNE(perplexity=30, init="pca", random_state=seed).fit_transform(features.numpy())
    return places, float(silhouette_score(places, labels.numpy()))


def run_ndp(data: Split, test: Split, seed: int, cells: dict[str, Any]) -> None:
    """Accuracy after four fifths of the parameters went while training, by what chose them and what learns on afterwards.

    Fills in the cells that are not there.
    """
    calibration = build_images(data, num_samples=256, batch_size=64, seed=seed, name="MNIST train")
    common: dict[str, Any] = {"units": ["channels"], "target_reduction": 0.8, "round_to": 1, "min_channels": 8}
    common |= {"target_scope": "all", "num_rounds": 4, "seed": seed, "disable_tqdm": True}
    rivals: dict[str, Any] = {
        "NDP, all weights learn on": NDPArguments(**common),
        "NDP, most affected half learns on": NDPArguments(**common, finetune_share=0.5),
        "ndi, equal shares": SpectralPruningArguments(**common, criterion="ndi"),
        "magnitude, one ranking": SpectralPruningArguments(
            **common, criterion="magnitude", layout="per_layer", allocation="scores"
        ),
        "magnitude, equal shares": SpectralPruningArguments(**common, criterion="magnitude"),
        "random, equal shares": SpectralPruningArguments(**common, criterion="random"),
    }
    for name in [name for name in rivals if name not in cells]:
        arguments, network = rivals[name], make_network(seed)
        before = num_parameters(network)
        callback = NDPCallback if isinstance(arguments, NDPArguments) else SpectralPruningCallback
        schedule = PruningSchedule("cubic", start_step=200, end_step=400)
        train(network, data, seed, 0.0, [callback(arguments, calibration, schedule=schedule)])
        widths = [layer.out_features for layer in network if isinstance(layer, nn.Linear)]
        cells[name] = {"accuracy": accuracy(network, test), "kept": num_parameters(network) / before, "widths": widths[:-1]}
        print(seed, name, cells[name], flush=True)


# ---- the figures


@in_style()
def ndi_figure(runs: list[list[dict[str, Any]]]) -> Any:
    """Curves of the layers over the steps: mean over the seeds, and a band of one standard deviation."""
    panels = {
        "ndi": "NDI, mean of the layer's units",
        "correlation": "Squared correlation of two units' outputs, mean",
        "informativeness": "Entropy of a unit's output, mean (1 = as the whole layer's)",
    }
    colours = ("kept", "removed", "third", "ink")
    steps = [point["step"] for point in runs[0]]
    keys = list(runs[0][0]["groups"])
    figure, axes = panels_below_each_other(len(panels), 105)
    for axis, (name, title) in zip(axes, panels.items(), strict=True):
        for layer, (key, colour) in enumerate(zip(keys, colours, strict=True), start=1):
            values = np.array([[point["groups"][key][name] for point in points] for points in runs])
            mean, spread = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(len(steps))
            axis.fill_between(steps, mean - spread, mean + spread, color=LIGHT[colour], alpha=0.13, linewidth=0)
            axis.plot(steps, mean, color=LIGHT[colour], linewidth=1.4, label=f"layer {layer} ({WIDTHS[layer]} units)")
        axis.set_title(title)
        axis.grid(True, axis="y")
        axis.margins(x=0.01)
        axis.set_xlabel("step")
    axes[-1].legend(loc="lower right", ncols=2)  # where no line is
    return figure


@in_style()
def tsne_figure(panels: dict[str, np.ndarray], labels: np.ndarray) -> Any:
    """Two t-SNE maps side by side, a colour per digit, with the digit at the middle of its points."""
    side = 290.0
    figure = new_figure(side + 10, 2 * side + 40)
    for index, (title, places) in enumerate(panels.items()):
        axis = panel(figure, 8 + index * (side + 24), 6, side, side - 16)
        for digit, colour in enumerate(CLASSES):
            mine = places[labels == digit]
            axis.scatter(mine[:, 0], mine[:, 1], s=5, color=colour, alpha=0.65, linewidths=0)
        for digit in range(10):
            x, y = np.median(places[labels == digit], axis=0)
            box = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": CLASSES[digit], "linewidth": 0.8}
            axis.text(x, y, str(digit), ha="center", va="center", fontsize=9, bbox=box)
        axis.set_title(title)
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_visible(True)
    return figure


def write_figure(figure: Any, folder: Path, name: str, text: str) -> None:
    """The figure as PNG and as SVG that stands alone, whole or not at all."""
    to_png(figure, folder / f"{name}.png")
    small = folder / f".{name}.tmp.png"
    # Small by its size in pixels, not by fewer colours: those would swallow or tint the pale bands.
    picture = Image.open(folder / f"{name}.png").convert("RGB")
    picture.resize((1100, round(1100 * picture.height / picture.width)), Image.Resampling.BOX).save(small, optimize=True)
    small.replace(folder / f"{name}.png")
    markup = to_svg(figure, name.replace("_", "-"), text)
    for colour, value in LIGHT.items():
        markup = markup.replace(f"var(--{colour})", value)
    write_text(folder / f"{name}.svg", re.sub(r"(\d\.\d\d)\d+", r"\1", markup) + "\n")


# ---- the tables


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{statistics.mean(values):8.3f} ± {statistics.stdev(values) if len(values) > 1 else float('nan'):.3f}"


def print_table(rows: dict[str, list[dict[str, Any]]]) -> None:
    """One line per row, mean and standard deviation of every plain figure over the seeds."""
    for name, cells in rows.items():
        names = [key for key, value in cells[0].items() if isinstance(value, (int, float))]
        print(f"{name:36}", "  ".join(f"{key} {spread([cell[key] for cell in cells])}" for key in names))


def summary(cells: list[dict[str, Any]]) -> str:
    """What a panel's title says of all seeds."""
    parts = []
    for name, words, digits in (("knn", "10-NN {} %", 1), ("silhouette", "silhouette {}", 2)):
        values = [cell[name] for cell in cells]
        parts.append(words.format(f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"))
    return ", ".join(parts)


def draw(results: dict[str, Any], seeds: list[int], folder: Path) -> None:
    """Both figures from finished cells."""
    text = "Lines of four layers over 600 training steps: NDI, squared correlation and entropy, with bands over the seeds."
    write_figure(ndi_figure([results["curves"][str(seed)] for seed in seeds]), folder, "ndi_over_training", text)
    panels = {}
    for weight, title in ((0.0, "without"), (SHOWN, f"weight {SHOWN:g}")):
        mine = [cell for cell in results["cells"] if cell["weight"] == weight and cell["seed"] in seeds]
        panels[f"{title}: {summary(mine)}"] = np.array(results["maps"][str(weight)])
    text = "Two maps of test images in ten clusters, one per digit: features without and with the regulariser."
    write_figure(tsne_figure(panels, np.array(results["labels"])), folder, "tsne_features", text)


def save(results: dict[str, Any], file: Path) -> None:
    """Writes the results, whole or not at all."""
    rounded = json.loads(json.dumps(results), parse_float=lambda text: float(f"{float(text):.6g}"))
    write_text(file, json.dumps(rounded) + "\n")


def run_cell(weight: float, seed: int, splits: tuple[Split, Split], drawn: Tensor, results: dict[str, Any]) -> None:
    """Trains and measures one network; its figures, curves and map go into the results."""
    data, test = splits
    network = make_network(seed)
    calibration = build_images(data, num_samples=512, batch_size=128, seed=0, name="MNIST train")
    tracking = NDITrackingCallback(calibration, **TRACKING)
    train(network, data, seed, weight, [tracking] if weight == 0 else [])
    features, labels = features_of(network, test[0][drawn]), test[1][drawn]
    cell = {"weight": weight, "seed": seed, "accuracy": accuracy(network, test), **figures_of(features, labels)}
    if weight == 0:
        results["curves"][str(seed)] = tracking.points
    if weight in (0, SHOWN):
        places, cell["tsne_silhouette"] = embed(features[:NUM_TSNE], labels[:NUM_TSNE], seed)
        results["maps"].setdefault(str(weight), places.round(2).tolist())
        results["labels"] = labels[:NUM_TSNE].tolist()
    results["cells"].append(cell)


def main() -> None:
    """Trains, measures, draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, required=True)
    parser.add_argument("--figures", type=Path, default=Path(__file__).parent.parent / "docs" / "figures")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "differentiation_figures.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--ndp", action="store_true", help="also prune while training")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if len(options.seeds) < 2:
        parser.error("`--seeds` needs at least two, for the spread.")
    torch.set_num_threads(options.threads)
    for folder in (options.figures, options.output.parent):
        folder.mkdir(parents=True, exist_ok=True)
    data, test = read_split(options.mnist, "train"), read_split(options.mnist, "t10k")
    splits = (data[0][:NUM_TRAIN], data[1][:NUM_TRAIN]), test
    drawn = torch.randperm(len(test[1]), generator=torch.Generator().manual_seed(0))[:NUM_FEATURES]
    results: dict[str, Any] = {"cells": [], "ndp": {}, "curves": {}, "maps": {}, "labels": [], "seconds": 0.0}
    if options.output.is_file():
        results = json.loads(options.output.read_text())
    results["protocol"] = {
        "model": "-".join(map(str, WIDTHS)) + ", ReLU",
        "training": {"pictures": NUM_TRAIN, "optimizer": "AdamW, learning rate falling linearly to 0", **TRAINING},
        "measured": "accuracy on the 10,000 test images (binomial standard error about 0.2 points at 96 %), features on "
        f"{NUM_FEATURES} of them, t-SNE on {NUM_TSNE}",
        "ndp": "80 % of the parameters in 4 rounds, cubic, from step 200 to 400; calibrated on 256 training images",
    }
    results["machine"], results["versions"] = machine(), library_versions()
    done = {(cell["weight"], cell["seed"]) for cell in results["cells"]}
    for seed in options.seeds:
        began = time.perf_counter()
        for weight in WEIGHTS:
            if (weight, seed) not in done:
                run_cell(weight, seed, splits, drawn, results)
                print(results["cells"][-1], flush=True)
                save(results, options.output)
        if options.ndp:
            run_ndp(*splits, seed, results["ndp"].setdefault(str(seed), {}))
        results["seconds"] += time.perf_counter() - began
        save(results, options.output)
    draw(results, options.seeds, options.figures)
    print_table({f"weight {w}": [cell for cell in results["cells"] if cell["weight"] == w] for w in WEIGHTS})
    if results["ndp"]:
        names = next(iter(results["ndp"].values()))
        print_table({name: [cells[name] for cells in results["ndp"].values()] for name in names})


if __name__ == "__main__":
    main()
